"""FHIR as a wire and a notation: HTTP, references, codings, partial dates, strict JSON. No rule of this study."""
