//! Parses the lines of `chat`: text, commands, and the end.

use twinlock_app::Intent;
use twinlock_client::Target;
use twinlock_core::id::Name;

use super::files::expand_home;

/// The answer to `/help`.
pub(super) const HELP: &str = "\
/who              who is online, and who is here
/rooms            your rooms and conversations, and the ones you could join
/join ROOM        join a room and talk there
/dm USER [TEXT]   talk with one person
/history [N]      the last N entries (20)
/put PATH         send a file
/get N            fetch the file of entry N into this directory
/status           both locks as they stand, with the running session
/quit             end; `exit` and Ctrl-D do too
//TEXT            say /TEXT";

/// Completions for Tab at the beginning of a line.
pub(super) const COMMANDS: &[&str] =
    &["/dm", "/get", "/help", "/history", "/join", "/put", "/quit", "/rooms", "/status", "/who"];

/// Entries that `/history` shows by default.
const HISTORY: u64 = 20;
/// Most entries that it shows.
const MOST: u64 = 500;

/// A line that was typed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ChatInput {
    Empty,
    Intent(Intent),
    Help,
    Quit,
    /// An unknown command, or one with the wrong arguments.
    Invalid(String),
}

impl ChatInput {
    pub(super) fn parse(line: &str) -> Self {
        let line = line.trim_end_matches(['\r', '\n']);
        if line.trim().is_empty() {
            return Self::Empty;
        }
        if line.trim() == "exit" {
            return Self::Quit;
        }
        let text = |text: &str| Self::Intent(Intent::Send { text: text.to_owned() });
        let Some(rest) = line.strip_prefix('/') else { return text(line) };
        if rest.starts_with('/') {
            return text(rest);
        }
        let (word, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let rest = rest.trim();
        let intent = match word {
            "help" | "?" => return Self::Help,
            "quit" | "exit" => return Self::Quit,
            "who" => Some(Intent::ShowPeople),
            "rooms" => Some(Intent::ShowRooms),
            "status" => Some(Intent::ShowStatus),
            "join" => rest.parse().ok().map(|target| match target {
                Target::Room(room) => Intent::OpenRoom(room),
                Target::User(user) => Intent::OpenDirect(user),
            }),
            "dm" => direct(rest),
            "put" if !rest.is_empty() => Some(Intent::SendFile { path: expand_home(rest) }),
            "get" => {
                let n = rest.strip_prefix('#').unwrap_or(rest).parse().ok().filter(|n| *n > 0);
                n.map(|n| Intent::FetchFile { n })
            }
            "history" if rest.is_empty() => Some(Intent::ShowHistory { entries: HISTORY }),
            "history" => {
                rest.parse().ok().map(|n: u64| Intent::ShowHistory { entries: n.clamp(1, MOST) })
            }
            _ => None,
        };
        intent.map_or_else(|| Self::Invalid(line.to_owned()), Self::Intent)
    }
}

/// The arguments of `/dm`: a user, and perhaps a text.
fn direct(arguments: &str) -> Option<Intent> {
    let (user, text) = arguments.split_once(char::is_whitespace).unwrap_or((arguments, ""));
    let user = user.strip_prefix('@').unwrap_or(user).to_ascii_lowercase();
    let user = Name::new(&user).ok()?;
    Some(match text.trim() {
        "" => Intent::OpenDirect(user),
        text => Intent::SendDirect { user, text: text.to_owned() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chat_command__input_is_text_command_quit_or_nothing() {
        let text = |text: &str| ChatInput::Intent(Intent::Send { text: text.to_owned() });
        assert_eq!(ChatInput::parse("hello"), text("hello"));
        assert_eq!(ChatInput::parse("  hello\r\n"), text("  hello"));
        assert_eq!(ChatInput::parse("//etc"), text("/etc"));
        assert_eq!(ChatInput::parse("exit the room"), text("exit the room"));
        assert_eq!(ChatInput::parse("  "), ChatInput::Empty);
        assert_eq!(ChatInput::parse("exit"), ChatInput::Quit);
        assert_eq!(ChatInput::parse("/quit"), ChatInput::Quit);
        assert_eq!(ChatInput::parse("/etc/passwd"), ChatInput::Invalid("/etc/passwd".into()));
    }

    #[test]
    fn chat_command__arguments_are_normalized_or_rejected() {
        let room = Name::new("ops").unwrap();
        let bob = Name::new("bob").unwrap();
        assert_eq!(ChatInput::parse("/join #Ops"), ChatInput::Intent(Intent::OpenRoom(room)));
        assert_eq!(
            ChatInput::parse("/dm @Bob"),
            ChatInput::Intent(Intent::OpenDirect(bob.clone()))
        );
        let text = "see you".to_owned();
        assert_eq!(
            ChatInput::parse("/dm bob see you"),
            ChatInput::Intent(Intent::SendDirect { user: bob, text })
        );
        assert_eq!(
            ChatInput::parse("/history"),
            ChatInput::Intent(Intent::ShowHistory { entries: HISTORY })
        );
        assert_eq!(
            ChatInput::parse("/history 9999"),
            ChatInput::Intent(Intent::ShowHistory { entries: MOST })
        );
        let path = "my report.pdf".into();
        assert_eq!(
            ChatInput::parse("/put  my report.pdf "),
            ChatInput::Intent(Intent::SendFile { path })
        );
        assert_eq!(ChatInput::parse("/get #12"), ChatInput::Intent(Intent::FetchFile { n: 12 }));
        for odd in ["/put", "/get", "/get 0", "/get x"] {
            assert!(matches!(ChatInput::parse(odd), ChatInput::Invalid(_)), "{odd}");
        }
        assert!(matches!(ChatInput::parse("/join a b"), ChatInput::Invalid(_)));
        assert!(matches!(ChatInput::parse("/history x"), ChatInput::Invalid(_)));
    }
}
