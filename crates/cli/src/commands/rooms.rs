//! `rooms` and `room`: list and manage rooms.

use serde::Serialize;
use twinlock_client::ClientError;
use twinlock_core::id::Name;
use twinlock_core::proto::{self, RefusalReason};
use twinlock_core::text::Untrusted;

use crate::args::{Room, Rooms, Target, TargetAndText};
use crate::context::Context;
use crate::conversation::{target_of, unread};
use crate::exit::{Exit, Failure};
use crate::output::Style;

#[derive(Debug, Serialize)]
struct RoomJson<'a> {
    conversation: String,
    topic: &'a str,
    head: u64,
    read: u64,
    unread: u64,
    members: u32,
    joined: bool,
}

pub(crate) async fn list(args: Rooms, context: &Context) -> Result<(), Failure> {
    let client = context.ask_once()?;
    let rooms = client.conversations(args.joinable).await?;
    client.close().await;
    let width = rooms.iter().map(|room| target_of(room).len()).max().unwrap_or(0);
    for room in &rooms {
        let name = target_of(room);
        let unread = unread(room);
        if args.json {
            context.out.json(&RoomJson {
                conversation: name,
                topic: &room.topic,
                head: room.head,
                read: room.read,
                unread,
                members: room.members,
                joined: room.joined,
            })?;
        } else {
            context.out.line(&line(context, room, &name, width, unread))?;
        }
    }
    if rooms.is_empty() && args.joinable {
        context.out.say("you are in every room; `twinlock room create` makes a new one");
    }
    Ok(())
}

fn line(
    context: &Context,
    room: &proto::Conversation,
    name: &str,
    width: usize,
    unread: u64,
) -> String {
    let padded = format!("{name:width$}");
    let people = match room.kind() {
        proto::conversation::Kind::Direct => String::new(),
        _ => format!("  {} in it", room.members),
    };
    let new = if unread > 0 && room.joined { format!("  {unread} unread") } else { String::new() };
    let topic = match Untrusted::new(room.topic.clone()).render_line() {
        topic if topic.is_empty() => topic,
        topic => format!("  {topic}"),
    };
    let used = padded.len() + people.len() + new.len();
    let topic = context.out.wrap(&topic, used, 4);
    let padded = context.out.style(Style::Bold, &padded);
    format!("{padded}{people}{new}{}", context.out.style(Style::Dim, &topic))
}

pub(crate) async fn run(room: Room, context: &Context) -> Result<(), Failure> {
    let client = context.ask_once()?;
    match room {
        Room::Create { name, topic } => {
            client.create_room(wants_room(&name)?, &topic).await?;
            context.out.say(&format!("room {name} exists, and you are a member"));
        }
        Room::Join { name } => {
            client.join_room(wants_room(&name)?).await?;
            context.out.say(&format!("you are in {name}"));
        }
        Room::Leave { name } => {
            let room = client.target(wants_room(&name)?.as_str()).await?;
            client.leave_room(room.id).await.map_err(|error| match error {
                // A higher role would not help: the lobby is the only room that cannot be left.
                ClientError::Refused(no) if no.why == RefusalReason::NotAllowed => Failure::new(
                    Exit::ServerSaidNo,
                    format!("{name} cannot be left: every member is in it"),
                ),
                error => error.into(),
            })?;
            context.out.say(&format!("you left {name}"));
        }
        Room::Members { name, json } => {
            let room = client.target(wants_room(&name)?.as_str()).await?;
            for user in client.members(room.id).await? {
                if json {
                    context.out.json(&serde_json::json!({ "user": user }))?;
                } else {
                    context.out.line(&user)?;
                }
            }
        }
        Room::Topic(topic) => {
            let TargetAndText { target, text, .. } = topic.take_words()?;
            let room = client.target(wants_room(&target)?.as_str()).await?;
            match text {
                Some(text) => _ = client.set_topic(room.id, &text).await?,
                None => context.out.line(&Untrusted::new(room.topic).render_line())?,
            }
        }
    }
    client.close().await;
    Ok(())
}

fn wants_room(target: &Target) -> Result<&Name, Failure> {
    target.room().ok_or_else(|| Failure::usage(format!("{target} is a person, not a room")))
}
