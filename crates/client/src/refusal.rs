//! The server's refusals, and the messages for users.
//!
//! The protocol carries codes and figures and no free text; the client supplies the text. A message
//! names a limit as the server's configuration does, so that the operator can raise it.

use std::fmt;

use twinlock_core::proto::{self, Limit, RefusalReason, Role};

/// A refusal by the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub why: RefusalReason,
    /// With [`RefusalReason::Busy`] and [`RefusalReason::Storage`]: seconds until a retry makes sense.
    pub retry_seconds: u32,
    /// The limit that was reached, if the server names one.
    pub limit: Limit,
    /// The value of the limit, in the limit's unit; 0 if unknown.
    pub most: u64,
    /// With [`RefusalReason::NotAllowed`]: the minimum role; `Role::None` if unknown.
    pub role: Role,
    /// With [`RefusalReason::Storage`]: the revocation is in effect until the server restarts, but not
    /// recorded.
    pub barred: bool,
}

impl Refusal {
    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.why, RefusalReason::Busy | RefusalReason::Storage)
    }
}

impl From<RefusalReason> for Refusal {
    fn from(why: RefusalReason) -> Self {
        let (limit, role) = (Limit::None, Role::None);
        Self { why, retry_seconds: 0, limit, most: 0, role, barred: false }
    }
}

impl From<proto::Refusal> for Refusal {
    fn from(refusal: proto::Refusal) -> Self {
        Self {
            why: refusal.why(),
            retry_seconds: refusal.retry_seconds,
            limit: refusal.limit(),
            most: refusal.most,
            role: refusal.role(),
            barred: refusal.barred,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.barred {
            return f.write_str(
                "revoked until the server restarts, but not recorded: its disk does not accept writes. \
                 It records the revocation as soon as there is room; see that there is",
            );
        }
        match (self.why, self.role) {
            (RefusalReason::NotAllowed, Role::Admin) => {
                return f.write_str("you may not do that: it needs the role admin or owner");
            }
            (RefusalReason::NotAllowed, Role::Owner) => {
                return f.write_str("you may not do that: it needs the role owner");
            }
            _ => {}
        }
        match limit(self.limit, self.most) {
            Some(words) => f.write_str(&words)?,
            None => f.write_str(reason(self.why))?,
        }
        match self.why {
            RefusalReason::Busy => write!(f, "; try again in {} s", self.retry_seconds.max(1)),
            _ => Ok(()),
        }
    }
}

/// Messages for the reasons that name no limit.
fn reason(why: RefusalReason) -> &'static str {
    match why {
        RefusalReason::None => "the server refused, for a reason this program does not know",
        RefusalReason::Unsupported => {
            "the server does not know this request; it may be older than this client"
        }
        RefusalReason::Malformed => "the server could not read the request",
        RefusalReason::NotAllowed => {
            "you may not do that (it needs another role, or another kind of login)"
        }
        RefusalReason::NotFound => "no such room, person or device, or you are not a member",
        RefusalReason::NameTaken => "this name is taken; choose another",
        RefusalReason::NameBad => {
            "the server does not accept this name: 1 to 32 of a-z, 0-9, '.', '_' and '-', with \
             neither end one of the last three"
        }
        RefusalReason::TooLarge => "that is too large for the server",
        RefusalReason::AlreadyUsed => {
            "this invite was already used, or has expired; ask for a new one"
        }
        RefusalReason::Busy => "the server is busy",
        RefusalReason::Storage => "the server cannot write to its disk now (is it full?)",
        RefusalReason::LogInAgain => {
            "the password was entered more than five minutes ago, or has changed; enter it again"
        }
        RefusalReason::WrongPassword => "wrong password",
        RefusalReason::ReadOnly => "you may read this room, and not write to it",
        RefusalReason::LastOwner => {
            "the server would have no owner; make another person an owner first (`twinlock people role`)"
        }
        RefusalReason::Ahead => "the server's record ends before an entry that this client names",
        RefusalReason::Quota => "that is more than the server keeps of one file or of one user",
        RefusalReason::Hash => "the received content does not match its hash and was discarded",
        RefusalReason::Damaged => {
            "the server's record is damaged: an entry, or the content of a file, is missing or cannot be read"
        }
        RefusalReason::Limit => "the server's limit is reached",
    }
}

/// A limit with its value, the setting that changes it, and advice.
fn limit(limit: Limit, most: u64) -> Option<String> {
    let (figure, setting, advice) = match limit {
        Limit::None => return None,
        Limit::RoomsPerUser => {
            (format!("at most {most} rooms made by one user"), "rooms-per-user", "")
        }
        Limit::MembershipsPerUser => (
            format!("at most {most} conversations of one user"),
            "memberships-per-user",
            "; leave a room first",
        ),
        Limit::FollowsPerSession => (
            format!("at most {most} conversations followed in one session"),
            "follows-per-session",
            "",
        ),
        Limit::InvitesPerUser => (
            format!("at most {most} unused invites made by one user"),
            "invites-per-user",
            "; one that is used or expires makes room",
        ),
        Limit::DevicesPerUser => (
            format!("at most {most} devices of one user"),
            "devices-per-user",
            "; revoke one first (`twinlock devices`)",
        ),
        Limit::ClassicKeysPerUser => (
            format!("at most {most} classic keys of one user"),
            "classic-keys-per-user",
            "; revoke one first (`twinlock classic list`)",
        ),
        Limit::ChangesPerMinute => {
            (format!("at most {most} changes a minute by one user"), "changes-per-minute", "")
        }
        Limit::SearchSeconds => (
            format!("the search takes longer than {most} s"),
            "search-seconds",
            "; search for rarer or longer words",
        ),
        Limit::TextPerDay => (
            format!("at most {} of text by one user in 24 hours", bytes(most)),
            "text-per-day-mib",
            "",
        ),
        Limit::TextReserve => (
            format!("text leaves {} of the server's disk free", bytes(most)),
            "text-reserve-mib",
            "; its operator has to free disk space",
        ),
        Limit::LargestFile => {
            (format!("at most {} for one file", bytes(most)), "largest-file-mib", "")
        }
        Limit::FilesPerUser => {
            (format!("at most {} of files of one user", bytes(most)), "files-per-user-mib", "")
        }
        Limit::FileCountPerUser => {
            (format!("at most {most} files of one user"), "files-number-per-user", "")
        }
        Limit::DiskReserve => (
            format!("files leave {} of the server's disk free", bytes(most)),
            "disk-reserve-mib",
            "; its operator has to free disk space",
        ),
        Limit::TopicBytes => (format!("a topic has at most {most} bytes"), "", ""),
        Limit::TextBytes => (format!("a message has at most {most} bytes"), "", ""),
        Limit::SearchBytes => (format!("a search has at most {most} bytes of words"), "", ""),
        Limit::Registrations => {
            (format!("at most {most} registrations in one session"), "", "; log in again")
        }
        Limit::Transfers => (format!("at most {most} files at once in one session"), "", ""),
    };
    Some(match setting {
        "" => format!("{figure}{advice}"),
        setting => format!("{figure} (limit `{setting}` of the server){advice}"),
    })
}

/// Formats a size in the largest unit of which it is a whole multiple.
fn bytes(n: u64) -> String {
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let whole = |(unit, _): &&(u64, &str)| n >= *unit && n.is_multiple_of(*unit);
    match units.iter().find(whole) {
        Some((unit, name)) => format!("{} {name}", n / unit),
        None => format!("{n} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn refusal__names_limit_value_and_setting() {
        let limited =
            |limit, most| Refusal { limit, most, ..RefusalReason::Limit.into() }.to_string();
        assert_eq!(
            limited(Limit::RoomsPerUser, 256),
            "at most 256 rooms made by one user (limit `rooms-per-user` of the server)"
        );
        assert_eq!(
            limited(Limit::TextPerDay, 4 << 30),
            "at most 4 GiB of text by one user in 24 hours (limit `text-per-day-mib` of the server)"
        );
        assert_eq!(limited(Limit::TopicBytes, 512), "a topic has at most 512 bytes");
        let busy = Refusal {
            retry_seconds: 7,
            limit: Limit::ChangesPerMinute,
            most: 60,
            ..RefusalReason::Busy.into()
        };
        let busy = busy.to_string();
        assert!(
            busy.contains("at most 60 changes") && busy.ends_with("try again in 7 s"),
            "{busy}"
        );
        // A refusal from a newer server.
        let unknown = proto::Refusal { why: 16, limit: 999, most: 5, ..Default::default() };
        assert_eq!(Refusal::from(unknown).to_string(), "the server's limit is reached");
    }

    #[test]
    fn refusal__names_the_required_role() {
        let no = |role| Refusal { role, ..RefusalReason::NotAllowed.into() }.to_string();
        assert!(no(Role::Admin).contains("the role admin or owner"), "{}", no(Role::Admin));
        assert!(no(Role::Owner).ends_with("the role owner"), "{}", no(Role::Owner));
        assert!(no(Role::None).contains("another kind of login"), "{}", no(Role::None));
    }

    #[test]
    fn refusal__older_client_decodes_reason_and_retry() {
        #[derive(Clone, PartialEq, prost::Message)]
        struct Older {
            #[prost(int32, tag = "1")]
            why: i32,
            #[prost(uint32, tag = "2")]
            retry_seconds: u32,
        }
        let newer = proto::Refusal {
            why: RefusalReason::Storage.into(),
            retry_seconds: 5,
            limit: Limit::TextPerDay.into(),
            most: 1,
            role: Role::Admin.into(),
            barred: true,
        };
        let older = Older::decode(&*newer.encode_to_vec()).unwrap();
        assert_eq!(older, Older { why: RefusalReason::Storage.into(), retry_seconds: 5 });
    }
}
