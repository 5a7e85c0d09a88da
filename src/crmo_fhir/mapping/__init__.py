"""From landed records to facts: SQL-on-FHIR views on the engine, then codes, units, dates and references placed."""
