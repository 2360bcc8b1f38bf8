//! What the commands say about a connection: its loss, its TLS and its session.

use std::time::Duration;

use indicatif::HumanDuration;
use twinlock_client::ClientError;
use twinlock_client::error::issued_by;
use twinlock_client::model::Facts;
use twinlock_core::session::Binding;

use crate::output::{Output, Style};

/// Warns the user when TLS does not reach the server.
pub(crate) fn warn_about_tls(out: &Output, binding: Binding, issuer: Option<&str>) {
    if let Some(warning) = tls_warning(binding, issuer) {
        out.warn(&warning);
    }
}

/// The warning about TLS, if one is due. `issuer`: who issued the certificate, as it says; without
/// TLS there is none.
pub(crate) fn tls_warning(binding: Binding, issuer: Option<&str>) -> Option<String> {
    match binding {
        Binding::Cut => Some(format!(
            "TLS is intercepted between you and the server: a proxy{}, or an attacker with a \
             forged certificate.\nThe inner lock held: nobody between reads what you write. \
             Names, sizes and times can be seen there.",
            issued_by(issuer)
        )),
        Binding::Unknown => Some(
            "The server says nothing about its end of TLS, so it is not known whether anybody \
             ends it in between.\nThe inner lock held."
                .to_owned(),
        ),
        Binding::Bound | Binding::Off => None,
    }
}

/// Where TLS ends, to follow the word "TLS".
pub(crate) fn tls_verdict(out: &Output, binding: Binding, issuer: Option<&str>) -> String {
    match binding {
        Binding::Bound => out.style(Style::Good, "reaches the server"),
        Binding::Cut => {
            let cut = out.style(Style::Bad, "INTERCEPTED between client and server");
            format!("{cut}{}", issued_by(issuer))
        }
        Binding::Unknown => out.style(Style::Warning, "unknown: the server sent no binding"),
        Binding::Off => "not compared: the profile sets binding = \"off\"".to_owned(),
    }
}

/// The same as a word, for JSON.
pub(crate) fn binding_word(binding: Binding) -> &'static str {
    match binding {
        Binding::Bound => "bound",
        Binding::Cut => "cut",
        Binding::Unknown => "unknown",
        Binding::Off => "off",
    }
}

/// Why the connection is down, for people. The system's error text for a broken stream goes to the
/// log.
pub(crate) fn why_down(error: &ClientError) -> String {
    match error {
        ClientError::Lost(details) => {
            tracing::info!(%details, "connection lost");
            "the connection was lost".to_owned()
        }
        error => error.to_string(),
    }
}

/// The message about a lost connection, printed once per loss.
pub(crate) fn trying_again(error: &ClientError, retry: Duration) -> String {
    format!("{}; trying again in {} s", why_down(error), retry.as_secs().max(1))
}

/// The running session as text: id, age, epoch, frames, rekeys.
pub(crate) fn session_words(facts: &Facts) -> String {
    let Facts { session, id, age, since_rekey, .. } = facts;
    let (epoch, (sent, received)) = (session.epoch.0, session.frames);
    let last = match since_rekey {
        Some(since) => format!(", the last {} ago", HumanDuration(*since)),
        None => String::new(),
    };
    format!(
        "session {id} for {}, epoch {epoch}, {sent} frames sent, {received} received, \
         {} rekeys{last}",
        HumanDuration(*age),
        session.rekeys
    )
}
