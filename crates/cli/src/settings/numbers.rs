//! The numbers of the configuration file: for each its key, range, unit and the field of the
//! server's configuration that it sets. The field documents its cost and has the default.

use std::time::Duration;

use serde::Deserialize;
use twinlock_server::Config;

use super::ranged::Ranged;
use Unit::{DiskMib, Hours, Kib, Mib, Number, PerMinute, Seconds, Size};

/// An hour, in seconds.
const HOUR: u64 = 3600;
/// A day, in seconds.
const DAY: u64 = 24 * HOUR;
/// A year, in seconds.
const YEAR: u64 = 365 * DAY;
/// Hours of a year.
const YEAR_HOURS: u64 = YEAR / HOUR;
/// Largest connection limit: more than the ports that one client address has.
const CONNECTIONS: u64 = 65_536;
/// Largest limit on a user's items of one kind.
const EACH: u64 = 1_000_000;
/// 16 TiB, in MiB: the largest file of common file systems.
const FILE_MIB: u64 = 1 << 24;
/// An exbibyte, in MiB.
const DISK_MIB: u64 = 1 << 40;
/// Largest number of login computations at once.
const HANDSHAKES: u64 = 1024;
/// Largest number of one user's files.
const FILES: u64 = 1_000_000_000;
/// Longest validity of an invite, in hours.
const INVITE_HOURS: u64 = 30 * 24;

/// A field of the server's configuration, with the unit of its number in the file.
enum Unit<'a> {
    Size(&'a mut usize),
    Number(&'a mut u64),
    PerMinute(&'a mut u32),
    Kib(&'a mut u64),
    Mib(&'a mut u64),
    /// The default depends on the disk.
    DiskMib(&'a mut Option<u64>),
    Seconds(&'a mut Duration),
    Hours(&'a mut Duration),
}

impl Unit<'_> {
    fn set(self, number: u64) {
        // No range exceeds its field; the conversions cannot saturate.
        match self {
            Size(field) => *field = usize::try_from(number).unwrap_or(usize::MAX),
            Number(field) => *field = number,
            PerMinute(field) => *field = u32::try_from(number).unwrap_or(u32::MAX),
            Kib(field) => *field = number.saturating_mul(1 << 10),
            Mib(field) => *field = number.saturating_mul(1 << 20),
            DiskMib(field) => *field = Some(number.saturating_mul(1 << 20)),
            Seconds(field) => *field = Duration::from_secs(number),
            Hours(field) => *field = Duration::from_secs(number.saturating_mul(HOUR)),
        }
    }

    /// The number; `None` if it depends on the disk.
    #[cfg(test)]
    fn get(self) -> Option<u64> {
        Some(match self {
            Size(field) => *field as u64,
            Number(field) => *field,
            PerMinute(field) => u64::from(*field),
            Kib(field) => *field >> 10,
            Mib(field) => *field >> 20,
            DiskMib(field) => (*field)? >> 20,
            Seconds(field) => field.as_secs(),
            Hours(field) => field.as_secs() / HOUR,
        })
    }
}

/// A number as a test sees it.
#[cfg(test)]
pub(super) struct Setting {
    pub(super) key: String,
    pub(super) least: u64,
    pub(super) most: u64,
    pub(super) value: Option<u64>,
}

/// Declares a table of the file: `key: LEAST to MOST => UNIT(FIELD)`, the key with underscores.
macro_rules! numbers {
    (
        $(#[$docs:meta])*
        $table:ident { $($key:ident: $least:tt to $most:ident => $unit:ident($($field:ident).+)),* $(,)? }
    ) => {
        $(#[$docs])*
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub(super) struct $table {
            $($key: Option<Ranged<$least, { $most }>>,)*
        }

        impl $table {
            /// Sets the numbers that the file has.
            pub(super) fn apply(self, config: &mut Config) {
                $(if let Some(number) = self.$key {
                    $unit(&mut config.$($field).+).set(number.get());
                })*
            }

            /// All numbers of the table with their values in `config`, in the order of declaration.
            #[cfg(test)]
            pub(super) fn settings(config: &mut Config) -> Vec<Setting> {
                vec![$(Setting {
                    key: stringify!($key).replace('_', "-"),
                    least: $least,
                    most: $most,
                    value: $unit(&mut config.$($field).+).get(),
                }),*]
            }
        }
    };
}

numbers! {
    /// `[limits]`. A file quota of 0 disables files; a rate or reserve of 0 disables the limit.
    LimitsFile {
        unauthenticated: 1 to CONNECTIONS => Size(limits.unauthenticated),
        unauthenticated_per_address: 1 to CONNECTIONS => Size(limits.unauthenticated_per_address),
        handshakes: 1 to HANDSHAKES => Size(limits.handshakes),
        logins_per_minute: 1 to EACH => PerMinute(limits.logins_per_minute),
        sessions_per_device: 1 to CONNECTIONS => Size(limits.sessions_per_device),
        password_sessions_per_user: 1 to CONNECTIONS => Size(limits.password_sessions_per_user),
        classic_connections: 1 to CONNECTIONS => Size(classic.connections),
        classic_connections_per_address: 1 to CONNECTIONS => Size(classic.connections_per_address),
        invite_hours: 1 to INVITE_HOURS => Hours(limits.invite),
        largest_file_mib: 1 to FILE_MIB => Mib(limits.file),
        files_per_user_mib: 0 to DISK_MIB => Mib(limits.files_per_user),
        files_number_per_user: 0 to FILES => Number(limits.files_number_per_user),
        disk_reserve_mib: 0 to DISK_MIB => DiskMib(limits.disk_reserve),
        partial_files_per_user: 1 to EACH => Size(limits.partial_files_per_user),
        partial_files_hours: 1 to YEAR_HOURS => Hours(limits.partial_files),
        rooms_per_user: 0 to EACH => Size(limits.bounds.rooms),
        // At least 1, because every user is in the lobby.
        memberships_per_user: 1 to EACH => Size(limits.bounds.memberships),
        follows_per_session: 1 to EACH => Size(limits.follows_per_session),
        invites_per_user: 1 to EACH => Size(limits.bounds.invites),
        devices_per_user: 1 to EACH => Size(limits.bounds.devices),
        classic_keys_per_user: 0 to EACH => Size(limits.bounds.classic_keys),
        changes_per_minute: 0 to EACH => PerMinute(limits.changes_per_minute),
        text_rate_kib: 0 to DISK_MIB => Kib(limits.text_rate),
        text_rate_unindexed_kib: 0 to DISK_MIB => Kib(limits.text_rate_unindexed),
        text_per_day_mib: 0 to DISK_MIB => Mib(limits.text_per_day),
        text_burst_kib: 64 to DISK_MIB => Kib(limits.text_burst),
        text_reserve_mib: 0 to DISK_MIB => DiskMib(limits.text_reserve),
        search_seconds: 1 to HOUR => Seconds(limits.search),
    }
}

numbers! {
    /// `[timing]`, in seconds. The minimums keep a session from doing nothing but rekeying or ending.
    TimingFile {
        ping_following: 1 to HOUR => Seconds(timing.ping_following),
        ping_idle: 1 to DAY => Seconds(timing.ping_idle),
        ping_answer: 1 to HOUR => Seconds(timing.ping_answer),
        rekey_overdue: 30 to YEAR => Seconds(timing.rekey_overdue),
        max_age: 60 to YEAR => Seconds(timing.max_age),
        drain: 0 to HOUR => Seconds(drain),
        come_back: 0 to HOUR => Seconds(come_back),
    }
}
