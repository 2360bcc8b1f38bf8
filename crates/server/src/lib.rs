//! twinlock-server

pub mod identity;
