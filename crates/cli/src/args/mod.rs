//! The command line: commands, options and the types of their values.

mod access;
mod bench;
mod classic;
mod command;
mod common;
mod enrolment;
mod files;
mod messages;
mod parse;
mod rooms;
mod status;
mod text_argument;
mod values;

pub(crate) use access::{DeviceAction, Devices, Invite, Passwd, Role};
pub(crate) use bench::{Bench, Mode};
pub(crate) use classic::{Add as ClassicAdd, Classic, Format};
pub(crate) use command::{Cli, Command};
pub(crate) use common::{Global, Json, PasswordFile};
pub(crate) use enrolment::{Join, Login};
pub(crate) use files::{Get, Moving, Put};
pub(crate) use messages::{Chat, History, Listen, Outbox, Send};
pub(crate) use parse::parse;
pub(crate) use rooms::{Room, Rooms};
pub(crate) use status::{Audit, Status};
pub(crate) use text_argument::TargetAndText;
pub(crate) use values::{Point, Since};
