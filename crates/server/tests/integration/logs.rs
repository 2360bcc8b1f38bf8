//! What the log contains, and what it must not contain.

use crate::common::log::Log;
use crate::common::*;
use tracing::Level;

#[tokio::test]
async fn log__no_unknown_name_secret_text_or_forged_line() {
    let log = Log::of(Level::TRACE);

    let host = TestServer::start_with(|config| config.limits.logins_per_minute = 1000).await;
    let (laptop, mut ada) = host.owner().await;
    // People type passwords where names belong.
    for name in ["hunter2.swordfish", "correct-horse-battery"] {
        for _ in 0..6 {
            let _busy = hello(&mut host.tls().await, password(name, "sesame open")).await;
        }
    }
    let invite = ada.invite(twinlock_core::proto::Role::Member, "").await.unwrap();
    let mut session = host.connect(invite.credential()).await.unwrap();
    session.begin("my-secret.phrase", true, true).await.unwrap();
    let evil = "words\n2026-01-01T00:00:00Z  INFO twinlock: root logged in\u{1b}[2J\u{202e}";
    let ack = ada.append(LOBBY, evil).await.unwrap();
    // A separate task writes a line for each append, with names and numbers.
    let recorded = format!("room=\"lobby\" conversation=1 n={} bytes={}", ack.n, evil.len());
    let written = async {
        while !log.text().contains(&recorded) {
            tokio::task::yield_now().await;
        }
    };
    soon("a line of the append", written).await;
    let text = log.text();
    for never in ["hunter2", "correct-horse", "my-secret", "sesame", "root logged in"] {
        assert!(!text.contains(never), "{never}");
    }
    for secret in [&laptop.secret[..], &invite.secret] {
        assert!(!text.contains(&hex(secret)) && !text.contains(&format!("{secret:?}")));
    }
    for told in ["registered", "logged in", "ada", "recorded"] {
        assert!(text.contains(told), "{told}");
    }

    let host = host.restart(|config| config.log_messages = true).await;
    let mut ada = host.connect(laptop.credential()).await.unwrap();
    let before = log.text().lines().count();
    ada.append(LOBBY, evil).await.unwrap();
    let text = log.text();
    let new: Vec<_> = text.lines().skip(before).collect();
    let line = new.iter().find(|line| line.contains("root logged in")).unwrap();
    assert!(line.contains("words\\n2026") && line.contains("ada/"), "{line}");
    assert!(!new.iter().any(|line| line.starts_with("2026-01-01T00:00:00Z")));
    assert!(!text.contains(['\u{1b}', '\u{202e}']));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
