//! Sessions and appends in the log at INFO.

use std::time::Duration;

use crate::common::classic::{Caller, add_key, both_ports, send, to_end};
use crate::common::log::Log;
use crate::common::*;
use tracing::Level;
use twinlock_core::proto::ClassicForm;

/// The number after `field` in a line.
fn number(line: &str, field: &str) -> u64 {
    let (_, after) = line.split_once(&format!(" {field}=")).unwrap();
    after.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn log__appends_are_summed_and_sessions_log_two_lines() {
    let log = Log::of(Level::INFO);
    let host = TestServer::start_with(both_ports).await;
    let (laptop, mut ada) = host.owner().await;
    let sid = format!("sid={}", ada.connection.session().id());
    for _ in 0..200 {
        ada.append(LOBBY, "twelve bytes").await.unwrap();
    }
    // The first sum is logged at once, the next one at least ten seconds later.
    let sums = ["appends recorded", &sid, "room=\"lobby\"", "conversation=1"];
    let first = log.wait(&sums, 1).await;
    assert!(first.len() <= 3, "{first:?}");
    ada.bye().await;
    log.wait(&["session ended", &sid], 1).await;
    let total = async {
        loop {
            let lines = log.with(&sums);
            if lines.iter().map(|line| number(line, "count")).sum::<u64>() == 200 {
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let lines = soon("a sum of all", total).await;
    assert_eq!(lines.iter().map(|line| number(line, "bytes")).sum::<u64>(), 200 * 12);
    assert_eq!(lines.iter().map(|line| number(line, "last")).max(), Some(200));
    assert!(lines.iter().all(|line| line.contains("from=\"ada/")), "{lines:?}");
    // A session also has one line for its start and one for its end.
    let of_it = log.with(&[&sid]);
    let begins = log.with(&["logged in", &sid, "ada", "peer=", "software="]);
    let ends = log.with(&["session ended", &sid, "ada", "seconds="]);
    assert_eq!([begins.len(), ends.len()], [1, 1], "{of_it:?}");
    assert_eq!(of_it.len(), lines.len() + 2, "{of_it:?}");

    // Messages that do not open are logged as errors, with a rate limit.
    let mut ada = host.connect(laptop.credential()).await.unwrap();
    add_key(&mut ada, "lamp", LOBBY, ClassicForm::JweLines).await.unwrap();
    for _ in 0..20 {
        let mut caller = Caller::new(&host, "lamp", &[7; 32]).await;
        let line = caller.sealed("hello");
        send(&mut caller.io, line).await;
        to_end(caller.io).await;
    }
    let errors = log.wait(&["ERROR", "a message could not be decrypted"], 1).await;
    assert!(errors.len() <= 3, "{errors:?}");
}
