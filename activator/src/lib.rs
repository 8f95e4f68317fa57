//! The Podlight activator.
