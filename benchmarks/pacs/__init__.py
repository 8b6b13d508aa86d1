"""The proof of the DICOM node: its processes, its peers, what the archive must have."""
