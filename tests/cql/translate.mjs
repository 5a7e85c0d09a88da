// node translate.mjs CQL FOLDER: translates CQL to ELM (elm.json, elm.xml in FOLDER); exit 1 if the translator complains.
import fs from "fs";
import path from "path";
import { CqlCompilerOptions, CqlTranslator, LibraryManager, ModelManager, createModelInfoProvider, createUcumService, stringAsSource } from "@cqframework/cql/cql-to-elm";

const here = import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname);
const [source, out] = process.argv.slice(2);
const read = name => fs.readFileSync(path.join(here, name), "utf8");
const models = {
  FHIR: read("node_modules/cql-exec-fhir/lib/modelInfos/fhir-modelinfo-4.0.1.xml"),
  System: read("modelinfo/org/hl7/elm/r1/system-modelinfo.xml"),
};
const modelManager = new ModelManager();
modelManager.modelInfoLoader.registerModelInfoProvider(
  createModelInfoProvider(id => (models[id] ? stringAsSource(models[id]) : null)));
const options = new CqlCompilerOptions();
options.setOptions([CqlCompilerOptions.Options.DisableListDemotion, CqlCompilerOptions.Options.DisableListPromotion]);
const libraries = new LibraryManager(modelManager, options, undefined, createUcumService(value => value, () => null, a => a, a => a));
const translator = CqlTranslator.fromText(fs.readFileSync(source, "utf8"), libraries);

const elm = JSON.parse(translator.toJson());
// "membership" is a hint about performance that holds for every `in` of a value set
const findings = elm.library.annotation.filter(a => a.message && !a.message.includes("membership"));
for (const f of findings) console.error(f.errorSeverity, f.startLine, f.startChar, f.message);
elm.library.annotation = elm.library.annotation.filter(a => a.type === "CqlToElmInfo");

// engines need neither the places in the source nor the empty lists
const empty = new Set(["signature", "annotation", "include", "codeFilter", "dateFilter", "otherFilter"]);
const keep = ([key, value]) => key !== "localId" && key !== "locator" && !(empty.has(key) && Array.isArray(value) && !value.length);
const slim = x => Array.isArray(x) ? x.map(slim)
  : x && typeof x === "object" ? Object.fromEntries(Object.entries(x).filter(keep).map(([key, value]) => [key, slim(value)]))
  : x;
fs.writeFileSync(path.join(out, "elm.json"), JSON.stringify(slim(elm)));
fs.writeFileSync(path.join(out, "elm.xml"), translator.toXml().replace(/<annotation xsi:type="a:CqlToElmError"[^>]*\/>/g, ""));
process.exitCode = findings.length ? 1 : 0;
