//! `room`: creates, joins, leaves and describes rooms.

use twinlock_client::Target;
use twinlock_client::error::{ClientError, RefusalReason};
use twinlock_core::id::Name;

use crate::args::{RoomCommand, TargetAndText};
use crate::context::Context;
use crate::exit::{Exit, Failure};

pub(crate) async fn run(room: RoomCommand, context: &Context) -> Result<(), Failure> {
    let client = context.ask_once()?;
    match room {
        RoomCommand::Create { name, topic } => {
            client.create_room(wants_room(&name)?, &topic).await?;
            context.out.say(&format!("room {name} exists, and you are a member"));
        }
        RoomCommand::Join { name } => {
            client.join_room(wants_room(&name)?).await?;
            context.out.say(&format!("you are in {name}"));
        }
        RoomCommand::Leave { name } => {
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
        RoomCommand::Members { name, json } => {
            let room = client.target(wants_room(&name)?.as_str()).await?;
            for user in client.members(room.id).await? {
                if json {
                    context.out.json(&serde_json::json!({ "user": user }))?;
                } else {
                    context.out.line(&user)?;
                }
            }
        }
        RoomCommand::Topic(topic) => {
            let TargetAndText { target, text, .. } = topic.take_words()?;
            let room = client.target(wants_room(&target)?.as_str()).await?;
            match text {
                Some(text) => _ = client.set_topic(room.id, &text).await?,
                None => context.out.line(&room.topic.render_line())?,
            }
        }
    }
    client.close().await;
    Ok(())
}

fn wants_room(target: &Target) -> Result<&Name, Failure> {
    target.room().ok_or_else(|| Failure::usage(format!("{target} is a person, not a room")))
}
