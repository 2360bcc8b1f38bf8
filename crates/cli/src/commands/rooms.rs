//! `rooms`: lists rooms and direct conversations.

use serde::Serialize;
use twinlock_client::{ConversationInfo, ConversationKind};

use crate::args::RoomsArgs;
use crate::context::Context;
use crate::exit::Failure;
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

pub(crate) async fn run(args: RoomsArgs, context: &Context) -> Result<(), Failure> {
    let client = context.ask_once()?;
    let rooms = client.conversations(args.joinable).await?;
    client.close().await;
    let width = rooms.iter().map(|room| room.target().len()).max().unwrap_or(0);
    for room in &rooms {
        let name = room.target();
        let unread = room.unread();
        if args.json {
            context.out.json(&RoomJson {
                conversation: name,
                topic: room.topic.expose_raw(),
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
    room: &ConversationInfo,
    name: &str,
    width: usize,
    unread: u64,
) -> String {
    let padded = format!("{name:width$}");
    let people = match room.kind {
        ConversationKind::Direct => String::new(),
        ConversationKind::Room => format!("  {} in it", room.members),
    };
    let new = if unread > 0 && room.joined { format!("  {unread} unread") } else { String::new() };
    let topic = match room.topic.render_line() {
        topic if topic.is_empty() => topic,
        topic => format!("  {topic}"),
    };
    let used = padded.len() + people.len() + new.len();
    let topic = context.out.wrap(&topic, used, 4);
    let padded = context.out.style(Style::Bold, &padded);
    format!("{padded}{people}{new}{}", context.out.style(Style::Dim, &topic))
}
