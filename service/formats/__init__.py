"""The answer in the formats of the field: FHIR, DICOM SR, plain text; and which of them a request wants."""
