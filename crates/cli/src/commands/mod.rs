//! The commands, one file each.

mod audit;
mod bench;
mod chat;
mod classic;
pub(crate) mod completions;
mod devices;
mod doctor;
mod get;
mod history;
mod invite;
mod invites;
mod join;
mod listen;
mod login;
pub(crate) mod man;
mod outbox;
mod passwd;
mod people;
mod put;
mod records;
mod room;
mod rooms;
mod send;
pub(crate) mod serve;
mod status;

use crate::args::{AuditCommand, CliCommand, RecordsCommand};
use crate::context::Context;
use crate::exit::Failure;

/// Runs a client command.
pub(crate) async fn run(command: CliCommand, mut context: Context) -> Result<(), Failure> {
    context.global.find_proxies().await?;
    let needs_address = !matches!(
        command,
        CliCommand::Join(_) | CliCommand::Login(_) | CliCommand::Doctor(_) | CliCommand::Records(_)
    );
    if needs_address {
        context.find_address()?;
    }
    let subject = command.subject();
    let ended = match command {
        CliCommand::Join(join) => join::run(join, &context).await,
        CliCommand::Login(login) => login::run(login, &context).await,
        CliCommand::Chat(chat) => chat::run(chat, context).await,
        CliCommand::Send(send) => send::run(send, &context).await,
        CliCommand::Listen(listen) => listen::run(listen, &context).await,
        CliCommand::Outbox(what) => outbox::run(what, &context).await,
        CliCommand::History(history) => history::run(history, &context).await,
        CliCommand::Put(put) => put::run(put, &context).await,
        CliCommand::Get(get) => get::run(get, &context).await,
        CliCommand::Rooms(rooms) => rooms::run(rooms, &context).await,
        CliCommand::Room(room) => room::run(room, &context).await,
        CliCommand::People(args) => people::run(args, &context).await,
        CliCommand::Devices(devices) => devices::run(devices, &context).await,
        CliCommand::Invite(invite) => invite::run(invite, &context).await,
        CliCommand::Invites(args) => invites::run(args, &context).await,
        CliCommand::Classic(what) => classic::run(what, &context).await,
        CliCommand::Passwd(passwd) => passwd::run(passwd, &context).await,
        CliCommand::Status(args) => status::run(args, &context).await,
        CliCommand::Doctor(args) => doctor::run(args, &context).await,
        CliCommand::Audit(AuditCommand::Verify(json)) => audit::run(json, &context).await,
        CliCommand::Records(RecordsCommand::Check(args)) => records::run(args, &context).await,
        CliCommand::Bench(bench) => bench::run(bench, context).await,
        // `main` handles these without a runtime.
        CliCommand::Serve(_) | CliCommand::Completions { .. } | CliCommand::Man { .. } => Ok(()),
    };
    ended.map_err(|failure| match subject {
        Some(subject) => failure.about(&subject),
        None => failure,
    })
}
