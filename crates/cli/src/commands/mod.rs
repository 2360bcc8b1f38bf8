//! The commands, one file each.

mod audit;
mod bench;
mod chat;
mod classic;
pub(crate) mod completions;
mod devices;
mod get;
mod history;
mod invite;
mod join;
mod listen;
mod login;
pub(crate) mod man;
mod outbox;
mod passwd;
mod people;
mod put;
mod room;
mod rooms;
mod send;
pub(crate) mod serve;
mod status;

use crate::args::{Audit, Command};
use crate::context::Context;
use crate::exit::Failure;

/// Runs a client command.
pub(crate) async fn run(command: Command, mut context: Context) -> Result<(), Failure> {
    if !matches!(command, Command::Join(_) | Command::Login(_)) {
        context.find_address()?;
    }
    let subject = command.subject();
    let ended = match command {
        Command::Join(join) => join::run(join, &context).await,
        Command::Login(login) => login::run(login, &context).await,
        Command::Chat(chat) => chat::run(chat, context).await,
        Command::Send(send) => send::run(send, &context).await,
        Command::Listen(listen) => listen::run(listen, &context).await,
        Command::Outbox(what) => outbox::run(what, &context).await,
        Command::History(history) => history::run(history, &context).await,
        Command::Put(put) => put::run(put, &context).await,
        Command::Get(get) => get::run(get, &context).await,
        Command::Rooms(rooms) => rooms::run(rooms, &context).await,
        Command::Room(room) => room::run(room, &context).await,
        Command::People(json) => people::run(json, &context).await,
        Command::Devices(devices) => devices::run(devices, &context).await,
        Command::Invite(invite) => invite::run(invite, &context).await,
        Command::Classic(what) => classic::run(what, &context).await,
        Command::Passwd(passwd) => passwd::run(passwd, &context).await,
        Command::Status(args) => status::run(args, &context).await,
        Command::Audit(Audit::Verify(json)) => audit::run(json, &context).await,
        Command::Bench(bench) => bench::run(bench, context).await,
        // `main` handles these without a runtime.
        Command::Serve(_) | Command::Completions { .. } | Command::Man { .. } => Ok(()),
    };
    ended.map_err(|failure| match subject {
        Some(subject) => failure.about(&subject),
        None => failure,
    })
}
