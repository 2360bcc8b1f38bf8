//! The commands of `chat`.

use twinlock_core::id::Name;
use twinlock_core::proto;
use twinlock_core::text::Untrusted;

use super::{Talk, get_here};
use crate::args::Target;
use crate::commands::rooms;
use crate::commands::status::session_words;
use crate::entry::human;
use crate::exit::Failure;
use crate::open::target_of;
use crate::output::Style;

const HELP: &str = "\
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
pub(super) enum Said {
    Nothing,
    Text(String),
    Command(Command),
    Quit,
    Unknown(String),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Help,
    Who,
    Rooms,
    Join(Target),
    Direct(Name, Option<String>),
    History(u64),
    Put(String),
    Get(u64),
    Status,
}

impl Said {
    pub(super) fn parse(line: &str) -> Self {
        let line = line.trim_end_matches(['\r', '\n']);
        if line.trim().is_empty() {
            return Self::Nothing;
        }
        if line.trim() == "exit" {
            return Self::Quit;
        }
        let Some(rest) = line.strip_prefix('/') else { return Self::Text(line.to_owned()) };
        if rest.starts_with('/') {
            return Self::Text(rest.to_owned());
        }
        let (word, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let rest = rest.trim();
        let unknown = || Self::Unknown(line.to_owned());
        match word {
            "help" | "?" => Self::Command(Command::Help),
            "who" => Self::Command(Command::Who),
            "rooms" => Self::Command(Command::Rooms),
            "status" => Self::Command(Command::Status),
            "quit" | "exit" => Self::Quit,
            "join" => rest.parse().map_or_else(|_| unknown(), |t| Self::Command(Command::Join(t))),
            "dm" => {
                let (user, text) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
                let user = user.strip_prefix('@').unwrap_or(user).to_ascii_lowercase();
                let text = Some(text.trim().to_owned()).filter(|text| !text.is_empty());
                Name::new(&user)
                    .map_or_else(|_| unknown(), |user| Self::Command(Command::Direct(user, text)))
            }
            "put" if !rest.is_empty() => Self::Command(Command::Put(rest.to_owned())),
            "get" => {
                let n = rest.strip_prefix('#').unwrap_or(rest).parse().ok().filter(|n| *n > 0);
                n.map_or_else(unknown, |n| Self::Command(Command::Get(n)))
            }
            "history" => match rest {
                "" => Self::Command(Command::History(HISTORY)),
                n => n.parse().map_or_else(
                    |_| unknown(),
                    |n: u64| Self::Command(Command::History(n.clamp(1, MOST))),
                ),
            },
            _ => unknown(),
        }
    }
}

impl Talk {
    pub(super) async fn obey(&mut self, command: Command) -> Result<(), Failure> {
        match command {
            Command::Help => Ok(self.screen.print(HELP)?),
            Command::Who => self.who().await,
            Command::Rooms => self.rooms().await,
            Command::Join(Target::Room(room)) => {
                let joined = self.ask(self.client.join_room(&room)).await;
                let target = Target::Room(room);
                let joined = joined.map_err(|failure| failure.about(&target))?;
                self.go_to(target, &joined).await
            }
            Command::Join(Target::User(user)) | Command::Direct(user, None) => {
                let target = Target::User(user);
                let name = target.to_string();
                let opened = self.ask(self.client.target(&name)).await;
                let opened = opened.map_err(|failure| failure.about(&target))?;
                self.go_to(target, &opened).await
            }
            Command::Direct(user, Some(text)) => self.say(&Target::User(user), &text).await,
            Command::History(entries) => self.history(entries).await,
            Command::Put(path) => self.put(&path),
            Command::Get(n) => self.get(n).await,
            Command::Status => self.status().await,
        }
    }

    async fn go_to(
        &mut self,
        target: Target,
        conversation: &proto::Conversation,
    ) -> Result<(), Failure> {
        self.conversations.open(target.to_string());
        self.target = target;
        self.note(&format!("you are talking in {}", target_of(conversation)))?;
        self.show_last(conversation, HISTORY).await?;
        self.digest.remove(conversation.id);
        self.mark_read(conversation.id, conversation.head);
        // Follow from the end of the backlog, unless it is already followed.
        self.follow(conversation, conversation.head).await
    }

    async fn who(&mut self) -> Result<(), Failure> {
        let people = self.ask(self.client.people(false)).await?;
        let online: Vec<_> = people.iter().filter(|p| p.online).map(|p| p.user.as_str()).collect();
        let words = format!("online: {}", online.join(", "));
        self.note(&words)?;
        if let Target::Room(room) = &self.target {
            let room = room.to_string();
            let found = self.ask(self.client.target(&room)).await?;
            let members = self.ask(self.client.members(found.id)).await?;
            self.note(&format!("in {room}: {}", members.join(", ")))?;
        }
        Ok(())
    }

    async fn rooms(&mut self) -> Result<(), Failure> {
        let own = self.ask(self.client.conversations(false)).await?;
        let joinable = self.ask(self.client.conversations(true)).await?;
        for room in own.iter().chain(&joinable) {
            let name = self.out.style(Style::Bold, &target_of(room));
            let unread = rooms::unread(room);
            let state = match (room.joined, unread) {
                (false, _) => "  (join it with /join)".to_owned(),
                (true, 0) => String::new(),
                (true, unread) => format!("  {unread} unread"),
            };
            let line = format!("{state}  {}", Untrusted::new(room.topic.clone()).render_line());
            let used = target_of(room).len();
            self.screen.print(&format!("{name}{}", self.out.fold(line.trim_end(), used, 4)))?;
        }
        Ok(())
    }

    async fn history(&mut self, entries: u64) -> Result<(), Failure> {
        let target = self.target.to_string();
        let found = self.ask(self.client.target(&target)).await?;
        self.show_last(&found, entries).await
    }

    async fn show_last(
        &mut self,
        found: &proto::Conversation,
        entries: u64,
    ) -> Result<(), Failure> {
        let mut after = found.head.saturating_sub(entries);
        while after < found.head {
            let page = self.ask(self.client.read_page(found.id, after, 512)).await?;
            if page.upto <= after {
                break;
            }
            after = page.upto;
            // Later entries arrive through the follow of the conversation.
            for entry in page.entries.iter().filter(|entry| entry.n <= found.head) {
                self.screen.print(&human(&self.out, None, entry, &get_here(entry)))?;
            }
            if let Some(fault) = page.faults.into_iter().next() {
                return Err(fault.into());
            }
        }
        Ok(())
    }

    async fn status(&mut self) -> Result<(), Failure> {
        let facts = self.ask(self.client.facts()).await?;
        let unknown = || "unknown".to_owned();
        let lock_1 = format!(
            "lock 1: {}, {}, {}; it {}",
            facts.up.tls.version.clone().unwrap_or_else(unknown),
            facts.up.tls.group.clone().unwrap_or_else(unknown),
            facts.up.tls.suite.clone().unwrap_or_else(unknown),
            match crate::open::tls_warning(facts.up.binding) {
                None => "reaches the server",
                Some(_) => "may be intercepted: see `twinlock status`",
            },
        );
        let lock_2 = format!("lock 2: {}", session_words(&facts));
        let words = twinlock_core::invite::server_words(&facts.server_key);
        let user = self.user.clone();
        let software = Untrusted::new(facts.up.info.software.clone()).render_line();
        self.note(&format!("you are {user}; server: {software}, its words: {words}"))?;
        self.note(&lock_1)?;
        self.note(&lock_2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chat_command__input_is_text_command_quit_or_nothing() {
        assert_eq!(Said::parse("hello"), Said::Text("hello".into()));
        assert_eq!(Said::parse("  hello\r\n"), Said::Text("  hello".into()));
        assert_eq!(Said::parse("//etc"), Said::Text("/etc".into()));
        assert_eq!(Said::parse("exit the room"), Said::Text("exit the room".into()));
        assert_eq!(Said::parse("  "), Said::Nothing);
        assert_eq!(Said::parse("exit"), Said::Quit);
        assert_eq!(Said::parse("/quit"), Said::Quit);
        assert_eq!(Said::parse("/etc/passwd"), Said::Unknown("/etc/passwd".into()));
    }

    #[test]
    fn chat_command__arguments_are_normalized_or_rejected() {
        let room = Target::Room(Name::new("ops").unwrap());
        let bob = Name::new("bob").unwrap();
        assert_eq!(Said::parse("/join #Ops"), Said::Command(Command::Join(room)));
        assert_eq!(Said::parse("/dm @Bob"), Said::Command(Command::Direct(bob.clone(), None)));
        let text = Some("see you".to_owned());
        assert_eq!(Said::parse("/dm bob see you"), Said::Command(Command::Direct(bob, text)));
        assert_eq!(Said::parse("/history"), Said::Command(Command::History(HISTORY)));
        assert_eq!(Said::parse("/history 9999"), Said::Command(Command::History(MOST)));
        let path = "my report.pdf".to_owned();
        assert_eq!(Said::parse("/put  my report.pdf "), Said::Command(Command::Put(path)));
        assert_eq!(Said::parse("/get #12"), Said::Command(Command::Get(12)));
        for odd in ["/put", "/get", "/get 0", "/get x"] {
            assert!(matches!(Said::parse(odd), Said::Unknown(_)), "{odd}");
        }
        assert!(matches!(Said::parse("/join a b"), Said::Unknown(_)));
        assert!(matches!(Said::parse("/history x"), Said::Unknown(_)));
    }
}
