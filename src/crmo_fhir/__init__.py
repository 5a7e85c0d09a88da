"""crmo-fhir: from FHIR records to the treatment-effect table of a CRMO/CNO cohort."""

__version__ = "0.1.0"
