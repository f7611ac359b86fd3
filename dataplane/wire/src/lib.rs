//! Header views, parse, checksums and encapsulation templates.
