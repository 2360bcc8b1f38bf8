//! Performs effects with a client.

use std::future::pending;

use twinlock_client::blocking::run_blocking;
use twinlock_client::{Client, ClientError, ConversationInfo, ConversationKind, PersonInfo};
use twinlock_transport::OsEntropy;

use crate::effect::{ClientEffect, EffectOutcome};

/// Maximum number of entries of a page.
const PAGE: u32 = 512;

/// The conversations and people at the start.
#[derive(Debug)]
pub struct Roster {
    /// The conversation to open.
    pub open: ConversationInfo,
    /// The lobby and direct conversations, which are shown too.
    pub shown: Vec<ConversationInfo>,
    /// The other rooms, joined or not.
    pub rooms: Vec<ConversationInfo>,
    /// All people.
    pub people: Vec<PersonInfo>,
}

/// Loads the roster, and subscribes to presence. Repeats the requests until a connection delivers
/// the answers. Never resolves after the client has ended: its last event carries the reason.
///
/// # Errors
/// [`ClientError`], such as [`ClientError::NoTarget`] for the conversation to open.
pub async fn load_roster(client: &Client, open: &str) -> Result<Roster, ClientError> {
    loop {
        match load_once(client, open).await {
            Err(ClientError::Lost(_)) => {}
            Err(ClientError::Closed | ClientError::TooManySessions) => pending().await,
            loaded => return loaded,
        }
    }
}

async fn load_once(client: &Client, open: &str) -> Result<Roster, ClientError> {
    let open = client.target(open).await?;
    let mut all = client.conversations(false).await?;
    all.retain(|other| other.id != open.id);
    let is_shown =
        |other: &ConversationInfo| other.name == "lobby" || other.kind == ConversationKind::Direct;
    let (shown, mut rooms): (Vec<_>, Vec<_>) = all.into_iter().partition(is_shown);
    rooms.extend(client.conversations(true).await?);
    let people = client.people(true).await?;
    Ok(Roster { open, shown, rooms, people })
}

/// Performs an effect. `now_ms` is the time in ms since 1970 UTC. Needs a Tokio runtime.
///
/// # Errors
/// [`ClientError`].
pub async fn perform(
    client: &Client,
    effect: ClientEffect,
    now_ms: u64,
) -> Result<EffectOutcome, ClientError> {
    Ok(match effect {
        ClientEffect::Follow { conversation, after } => {
            client.follow(conversation, after).await?;
            EffectOutcome::Done
        }
        ClientEffect::MarkRead { conversation, n } => {
            let client = client.clone();
            tokio::spawn(async move { client.mark_read(conversation, n).await.ok() });
            EffectOutcome::Done
        }
        ClientEffect::Enqueue { target, text, is_aside } => {
            let outbox = client.state().outbox();
            let (name, body) = (target.clone(), text.clone());
            let enqueue = move || outbox.enqueue(&name, body.as_bytes(), now_ms, &mut OsEntropy);
            let message_id = run_blocking(enqueue).await??;
            let _closed = client.notify_enqueued().await;
            EffectOutcome::Queued { message_id, target, text, is_aside }
        }
        ClientEffect::CheckOutbox(ids) => {
            let outbox = client.state().outbox();
            let check =
                move || outbox.outcomes(&ids).map(|found| ids.into_iter().zip(found).collect());
            EffectOutcome::OutboxChecked(run_blocking(check).await??)
        }
        ClientEffect::JoinRoom(room) => EffectOutcome::Found(client.join_room(&room).await?),
        ClientEffect::OpenDirect(user) => {
            EffectOutcome::Found(client.target(&format!("@{user}")).await?)
        }
        ClientEffect::FindForHistory { target, entries } => {
            let conversation = client.target(&target).await?;
            EffectOutcome::FoundForHistory { conversation, entries }
        }
        ClientEffect::ReadPage(position) => {
            let page = client.read_page(position.conversation, position.after, PAGE).await?;
            EffectOutcome::Page(position, page)
        }
        ClientEffect::ListPeople => EffectOutcome::People(client.people(false).await?),
        ClientEffect::ListMembers { room } => {
            let found = client.target(&room).await?;
            let users = client.members(found.id).await?;
            EffectOutcome::Members { room, users }
        }
        ClientEffect::ListRooms => {
            let mut rooms = client.conversations(false).await?;
            rooms.extend(client.conversations(true).await?);
            EffectOutcome::Rooms(rooms)
        }
        ClientEffect::ReadFacts => EffectOutcome::Facts(Box::new(client.facts().await?)),
    })
}
