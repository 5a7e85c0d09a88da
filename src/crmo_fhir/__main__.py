"""`python -m crmo_fhir` is the same program as `crmo-fhir`."""

from crmo_fhir.cli import main

if __name__ == "__main__":
    main()
