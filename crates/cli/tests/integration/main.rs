//! Black-box tests: the real binary, real sockets, files, terminals and peers.
//!
//! One program for all of them, because linking one for each file takes minutes. `cargo nextest
//! run` runs each test in a separate process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    non_snake_case,
    unreachable_pub
)]

mod bench;
mod classic_basic;
mod classic_faults;
mod classic_peers;
mod cli_chat;
mod cli_exits;
mod cli_guessing;
mod cli_help;
mod cli_hostile;
mod cli_input;
mod cli_json;
mod cli_listen;
mod cli_passwords;
mod cli_streams;
mod cli_terminal;
mod cli_together;
mod common;
mod conversion;
mod disconnects;
mod disk;
mod disk_aimed;
mod disk_fails;
mod doctor;
mod files_basic;
mod files_edges;
mod files_full;
mod files_lies;
mod files_many;
mod files_proxy;
mod files_resume;
mod files_together;
mod files_torn;
mod hostile_lists;
mod idle;
mod invites;
mod kills;
mod middles;
mod options;
mod outages;
mod outbox;
mod people;
mod power;
mod records;
mod reload;
mod returns;
mod revoke_full;
mod send_syncs;
mod server_record;
mod server_starts;
mod sessions;
mod slots;
mod special_files;
mod tls_cut;
mod torture_flood;
mod torture_hostile;
mod torture_members;
mod torture_secrets;
mod torture_stalled;
mod transports;
mod via;
