//! Limits for each user.

/// A limit for each user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Rooms that the user created.
    Rooms,
    /// Conversations that the user is a member of.
    Memberships,
    /// Invites that the user created and that can still be used.
    Invites,
    /// Devices that are not revoked.
    Devices,
    /// Classic keys that are not revoked.
    ClassicKeys,
}

/// Limits for each user.
///
/// Each limit is checked in the transaction that would exceed it, so that concurrent requests
/// cannot exceed it. Lowering a limit removes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Rooms created by one user. Default 256; each takes a name and adds a row to every user's
    /// list of joinable rooms.
    pub rooms: usize,
    /// Conversations that one user joins or opens. Default 4096; a list of joinable rooms may skip
    /// this number of rows. Direct conversations that others open with the user count, but are not
    /// refused.
    pub memberships: usize,
    /// Unused invites created by one user. Default 1024; each is a credential that registers a
    /// user.
    pub invites: usize,
    /// Devices of one user that are not revoked. Default 32.
    pub devices: usize,
    /// Classic keys of one user that are not revoked. Default 256.
    pub classic_keys: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { rooms: 256, memberships: 4096, invites: 1024, devices: 32, classic_keys: 256 }
    }
}
