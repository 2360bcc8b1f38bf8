//! The command line: commands, options and the types of their values.

mod access;
mod bench;
mod classic;
mod command;
mod common;
mod doctor;
mod enrolment;
mod files;
mod messages;
mod parse;
mod rooms;
mod status;
mod text_argument;
mod values;

pub(crate) use access::{
    DeviceAction, DevicesArgs, InviteArgs, InvitesAction, InvitesArgs, PasswdArgs, PeopleAction,
    PeopleArgs,
};
pub(crate) use bench::{BenchArgs, BenchMode};
pub(crate) use classic::{ClassicAddArgs, ClassicCommand, ClassicFormat};
pub(crate) use command::{Cli, CliCommand};
pub(crate) use common::{GlobalArgs, JsonArgs, PasswordArgs};
pub(crate) use doctor::DoctorArgs;
pub(crate) use enrolment::{JoinArgs, LoginArgs};
pub(crate) use files::{GetArgs, PutArgs, TransferArgs};
pub(crate) use messages::{ChatArgs, HistoryArgs, ListenArgs, OutboxCommand, SendArgs};
pub(crate) use parse::parse;
pub(crate) use rooms::{RoomCommand, RoomsArgs};
pub(crate) use status::{AuditCommand, RecordsCheckArgs, RecordsCommand, StatusArgs};
pub(crate) use text_argument::TargetAndText;
pub(crate) use values::{Point, address as parse_address};
