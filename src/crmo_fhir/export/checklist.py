"""The items of RECORD, what of each this report holds, and what its reader must add.

RECORD: Benchimol EI, Smeeth L, Guttmann A, et al. The REporting of studies Conducted using Observational Routinely-collected
health Data (RECORD) statement. PLoS Med 2015;12:e1001885, doi 10.1371/journal.pmed.1001885. Its 13 items extend STROBE; they
are told here in short, the statement has the full wording.
"""

RECORD = (
    (
        "1.1",
        "Type of data, and the databases by name, in title or abstract",
        "Source of the records: at the top of the page.",
        "The name of the record system, in title or abstract.",
    ),
    (
        "1.2",
        "Region and time frame in title or abstract",
        "Period of diagnosis and last day of data: at the top.",
        "The region and the catchment area of the unit.",
    ),
    (
        "1.3",
        "Linkage between databases in title or abstract, if there was any",
        "Records of one person are merged; other databases are not linked.",
        "A linkage made before the records came, if any.",
    ),
    (
        "6.1",
        "How the population was selected: codes or algorithms, in detail",
        "From the records to the cohort; Parameters. The codes are the value sets in mappings/.",
        "The version of mappings/ as a supplement.",
    ),
    (
        "6.2",
        "Validation of the codes or algorithms",
        "Not in this report: diagnoses count as recorded, refuted ones are out.",
        "A validation against charts, or a reference to one.",
    ),
    (
        "6.3",
        "Flow diagram of the linkage, if databases were linked",
        "Merged records of a person: From the records to the cohort.",
        "A diagram, if databases were linked.",
    ),
    (
        "7.1",
        "Complete list of codes and algorithms for exposures, outcomes, confounders and effect modifiers",
        "Parameters; How to read this table. The codes are in mappings/, the rules in the README of the program.",
        "The lists of codes as a supplement; confounders that records do not hold.",
    ),
    (
        "12.1",
        "How far the investigators had access to the database",
        "Data quality: what was received for each candidate.",
        "Who had access to which records, and with what approval.",
    ),
    (
        "12.2",
        "How data were cleaned",
        "From the records to the cohort: records left out and why. Data quality: codes that were not recognised.",
        "Corrections made in the source.",
    ),
    (
        "12.3",
        "Linkage at the level of persons or institutions: methods and quality",
        "Records are joined by the links and identifiers of the source.",
        "The quality of these links.",
    ),
    (
        "13.1",
        "Selection of the persons included, with filtering by quality, availability and linkage; a flow diagram",
        "From the records to the cohort.",
        "Nothing, if the diagram is printed.",
    ),
    (
        "19.1",
        "Implications of data that were not made for the question: misclassification, unmeasured confounding, missing data, changes over time",
        "Not evaluable; What the choice of rules changes; Agreement between the sources of the effect; Data quality.",
        "The discussion itself, with changes of practice and coding in the period.",
    ),
    (
        "22.1",
        "Where protocol, raw data and program code can be had",
        "Program and version: at the end of the page. Figures: results.csv.",
        "Where the protocol is, and who may see the data.",
    ),
)
"""Number, item, where it stands here, what is to be added."""
