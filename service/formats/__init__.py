"""Response formats (FHIR, DICOM SR, plain text) and content negotiation."""
