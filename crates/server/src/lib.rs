//! twinlock-server
