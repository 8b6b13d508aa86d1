"""From pixels to a findings draft: image reader, backbone, CMN, decoding, text tower, bundle."""
