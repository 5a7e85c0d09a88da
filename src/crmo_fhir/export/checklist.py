"""The items of RECORD, what of each this report holds, and what its reader must add.

RECORD: Benchimol EI, Smeeth L, Guttmann A, et al. The REporting of studies Conducted using Observational Routinely-collected
health Data (RECORD) statement. PLoS Med 2015;12:e1001885, doi 10.1371/journal.pmed.1001885. Its 13 items extend STROBE; they
are told here in short, the statement has the full wording.
"""

from dataclasses import dataclass

SECTIONS = {
    "effect": "Treatment effect",
    "reading": "How to read this table",
    "attrition": "From the records to the cohort",
    "sensitivity": "What the choice of rules changes",
    "agreement": "Agreement between the sources of the effect",
    "quality": "Data quality",
    "parameters": "Parameters",
}
"""The sections that items name, by their id in the page; a release has not all of them."""


@dataclass(frozen=True, slots=True)
class Item:
    """What is asked, the sections that hold it (with what of it), what else answers it, and what is to be added."""

    number: str
    asked: str
    sections: tuple[tuple[str, str], ...]
    said: str
    add: str


RECORD = (
    Item(
        "1.1",
        "Type of data, and the databases by name, in title or abstract",
        (),
        "Source of the records: at the top of the page.",
        "The name of the record system, in title or abstract.",
    ),
    Item(
        "1.2",
        "Region and time frame in title or abstract",
        (),
        "Period of diagnosis and last day of data: at the top.",
        "The region and the catchment area of the unit.",
    ),
    Item(
        "1.3",
        "Linkage between databases in title or abstract, if there was any",
        (),
        "Records of one person are merged; other databases are not linked.",
        "A linkage made before the records came, if any.",
    ),
    Item(
        "6.1",
        "How the population was selected: codes or algorithms, in detail",
        (("attrition", ""), ("parameters", "")),
        "The codes are the value sets in mappings/.",
        "The version of mappings/ as a supplement.",
    ),
    Item(
        "6.2",
        "Validation of the codes or algorithms",
        (),
        "Not in this report: diagnoses count as recorded, refuted ones are out.",
        "A validation against charts, or a reference to one.",
    ),
    Item(
        "6.3",
        "Flow diagram of the linkage, if databases were linked",
        (("attrition", "merged records of a person"),),
        "",
        "A diagram, if databases were linked.",
    ),
    Item(
        "7.1",
        "Complete list of codes and algorithms for exposures, outcomes, confounders and effect modifiers",
        (("parameters", ""), ("reading", "")),
        "The codes are in mappings/, the rules in the README of the program.",
        "The lists of codes as a supplement; confounders that records do not hold.",
    ),
    Item(
        "12.1",
        "How far the investigators had access to the database",
        (("quality", "what was received for each candidate"),),
        "",
        "Who had access to which records, and with what approval.",
    ),
    Item(
        "12.2",
        "How data were cleaned",
        (("attrition", "records left out and why"), ("quality", "codes that were not recognised")),
        "",
        "Corrections made in the source.",
    ),
    Item(
        "12.3",
        "Linkage at the level of persons or institutions: methods and quality",
        (),
        "Records are joined by the links and identifiers of the source.",
        "The quality of these links.",
    ),
    Item(
        "13.1",
        "Selection of the persons included, with filtering by quality, availability and linkage; a flow diagram",
        (("attrition", ""),),
        "",
        "The diagram, in the publication.",
    ),
    Item(
        "19.1",
        "Implications of data that were not made for the question: misclassification, unmeasured confounding, missing data, changes over time",
        (("effect", "how many could not be judged"), ("sensitivity", ""), ("agreement", ""), ("quality", "")),
        "",
        "The discussion itself, with changes of practice and coding in the period.",
    ),
    Item(
        "22.1",
        "Where protocol, raw data and program code can be had",
        (),
        "Program and version: at the end of the page. Figures: results.csv.",
        "Where the protocol is, and who may see the data.",
    ),
)
"""The 13 items, in order."""
