//! twinlock-link
