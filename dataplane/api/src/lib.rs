//! The control API: penstock.proto and the typed model beside it.
