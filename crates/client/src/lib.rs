//! twinlock-client
