"""A FHIR server on a real socket of 127.0.0.1 that does what real servers and networks do wrong (see `fake_server`)."""
