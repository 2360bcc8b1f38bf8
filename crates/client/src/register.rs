//! The client side of a registration (section 8), over any session that answers requests.

use std::sync::Arc;

use bytes::Bytes;
use twinlock_core::credential::{Credential, draw_device_secret};
use twinlock_core::handshake::Enrolment;
use twinlock_core::id::{DeviceId, ServerKey};
use twinlock_core::keys::DeviceSecret;
use twinlock_core::opaque::{RECORD, REQUEST, RESPONSE};
use twinlock_core::proto::{self, answer::Result as Answered, request::Op};
use twinlock_transport::OsEntropy;

use crate::error::ClientError;

/// A session that answers one request at a time.
pub(crate) trait Ask {
    /// Sends a request and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError`]; only [`ClientError::Refused`] is a refusal by the server.
    fn ask(&mut self, op: Op) -> impl Future<Output = Result<Answered, ClientError>> + Send;
}

/// Begins a registration; the server chooses the device's id, the client its secret.
pub(crate) async fn begin(
    session: &mut impl Ask,
    begin: proto::RegisterBegin,
    server_key: &ServerKey,
) -> Result<(Option<DeviceId>, DeviceSecret), ClientError> {
    let Answered::RegisterIds(ids) = session.ask(Op::RegisterBegin(begin)).await? else {
        return Err(ClientError::Protocol("another answer than ids"));
    };
    let shown = ServerKey::from_slice(&ids.server_key);
    let shown = shown.ok_or(ClientError::Protocol("length of a server key"))?;
    if shown != *server_key {
        return Err(ClientError::OtherServer { known: *server_key, shown });
    }
    Ok((DeviceId::from_slice(&ids.device), draw_device_secret(&mut OsEntropy)))
}

/// Runs steps 1 to 3 of OPAQUE's registration for each credential; returns the records to upload.
pub(crate) async fn evaluate(
    session: &mut impl Ask,
    password: Option<Credential>,
    device: Option<(DeviceId, DeviceSecret)>,
    server_key: &ServerKey,
) -> Result<proto::RegisterFinish, ClientError> {
    let start = |credential: Option<Credential>| {
        credential.map(|c| Enrolment::start(Arc::new(c), &mut OsEntropy)).transpose()
    };
    let cannot = |_| ClientError::Failed("the credential cannot be blinded");
    let password = start(password).map_err(cannot)?;
    let device = device.map(|(id, secret)| Credential::Device(id, secret));
    let device = start(device).map_err(cannot)?;
    let request = |enrolment: &Option<(Enrolment<Arc<Credential>>, [u8; REQUEST])>| {
        let request = enrolment.as_ref().map(|(_, request)| Bytes::copy_from_slice(request));
        request.unwrap_or_default()
    };
    let requests = proto::RegisterEvaluate {
        password_request: request(&password),
        device_request: request(&device),
    };
    let answered = session.ask(Op::RegisterEvaluate(requests)).await?;
    let Answered::RegisterResponse(responses) = answered else {
        return Err(ClientError::Protocol("another answer than a registration's"));
    };
    let password_record = record(password, &responses.password_response, server_key).await?;
    let device_record = record(device, &responses.device_response, server_key).await?;
    Ok(proto::RegisterFinish { password_record, device_record })
}

/// Uploads the records; the server creates the credentials.
pub(crate) async fn finish(
    session: &mut impl Ask,
    records: proto::RegisterFinish,
) -> Result<(), ClientError> {
    match session.ask(Op::RegisterFinish(records)).await? {
        Answered::Done(_) => Ok(()),
        _ => Err(ClientError::Protocol("another answer than done")),
    }
}

/// The record to upload. A password takes a second and 256 MiB, so this uses a blocking thread.
async fn record(
    enrolment: Option<(Enrolment<Arc<Credential>>, [u8; REQUEST])>,
    response: &[u8],
    server_key: &ServerKey,
) -> Result<Bytes, ClientError> {
    let Some((enrolment, _)) = enrolment else { return Ok(Bytes::new()) };
    let response: [u8; RESPONSE] =
        response.try_into().map_err(|_| ClientError::Protocol("length of a response"))?;
    let pin = *server_key;
    let record: [u8; RECORD] = stretch(move || enrolment.finish(&response, &pin, &mut OsEntropy))
        .await?
        .map_err(|_| ClientError::Protocol("the response is not a group element"))?;
    Ok(Bytes::copy_from_slice(&record))
}

/// Runs work that may stretch a password on a blocking thread.
///
/// # Errors
/// [`ClientError::Failed`] if the thread fails, which is not a refusal by the server.
pub(crate) async fn stretch<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ClientError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ClientError::Failed("the password could not be stretched"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Fault;

    #[tokio::test]
    async fn password_stretch__panic_is_a_local_failure() {
        let failed = stretch(|| -> () { panic!("out of memory") }).await.unwrap_err();
        assert_eq!(failed.fault(), Fault::Local);
        assert!(failed.to_string().contains("this program"), "{failed}");
    }
}
