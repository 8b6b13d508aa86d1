"""Studies of a PACS, read by DICOMweb or received by the DICOM node. Needs the extra ``pacs``."""
