// Runs fqm-execution on stdin {bundle, patients, period, strata} and writes its summary MeasureReport to stdout.
//
// fqm-execution knows only stratifiers that answer yes or no. So each stratifier by a value becomes one for each value in
// `strata` (by id of the stratifier), and one for any other value: `<stratifier>|<value>` and `<stratifier>|`. The comparison
// with the value is the only thing added to the ELM. And it finds a Library by its url only, not by url|version.
import { createRequire } from "module";

const require = createRequire(new URL("../cql/package.json", import.meta.url));
const { Calculator } = require("fqm-execution");

const types = "{urn:hl7-org:elm-types:r1}";
const text = value => ({ type: "Literal", valueType: `${types}String`, value });
const equals = (one, value) => ({ type: "Equal", operand: [one, text(value)] });
const either = (one, two) => ({ type: "Or", operand: [one, two] });
const not = one => ({ type: "Not", operand: [one] });
const basisOf = group => group.extension.find(e => e.url.endsWith("cqm-populationBasis")).valueCode;

function statement(name, group, expression, condition) {
  const made = { name, context: "Patient", accessLevel: "Public" };
  if (basisOf(group) === "boolean") return { ...made, expression: condition({ type: "ExpressionRef", name: expression }) };
  const counted = group.population[0].criteria.expression; // the initial population
  const where = condition({ type: "FunctionRef", name: expression, operand: [{ type: "AliasRef", name: "X" }] });
  const source = [{ alias: "X", expression: { type: "ExpressionRef", name: counted } }];
  return { ...made, expression: { type: "Query", source, relationship: [], where } };
}

function unfold(measure, elm, strata) {
  for (const group of measure.group) {
    group.stratifier = group.stratifier.flatMap(stratifier => {
      const values = strata[stratifier.id] ?? [];
      return [...values, ""].map(value => {
        const id = `${stratifier.id}|${value}`;
        const other = one => not(values.map(v => equals(one, v)).reduce(either, { type: "Literal", valueType: `${types}Boolean`, value: "false" }));
        elm.library.statements.def.push(statement(id, group, stratifier.criteria.expression, value ? one => equals(one, value) : other));
        return { id, criteria: { language: "text/cql", expression: id } };
      });
    });
  }
}

let input = "";
for await (const chunk of process.stdin) input += chunk;
const { bundle, patients, period, strata } = JSON.parse(input);
const of = type => bundle.entry.map(e => e.resource).find(r => r.resourceType === type);
const content = of("Library").content.find(c => c.contentType === "application/elm+json");
const elm = JSON.parse(Buffer.from(content.data, "base64"));
if (Object.keys(strata).length) unfold(of("Measure"), elm, strata);
of("Measure").library = [of("Library").url];
content.data = Buffer.from(JSON.stringify(elm)).toString("base64");

const { results } = await Calculator.calculateMeasureReports(bundle, patients, {
  measurementPeriodStart: period.start,
  measurementPeriodEnd: period.end,
  reportType: "summary",
  calculateHTML: false,
  calculateClauseCoverage: false,
  calculateSDEs: false,
  trustMetaProfile: false,
});
process.stdout.write(JSON.stringify(results));
