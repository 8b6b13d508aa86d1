"""Studies of a PACS: choose the images, write the structured report, speak DICOMweb. Needs the extra ``pacs``."""
