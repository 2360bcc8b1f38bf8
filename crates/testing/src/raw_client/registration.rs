//! Registers users, devices and passwords, in steps or at once.

use bytes::Bytes;
use twinlock_core::credential::Credential;
use twinlock_core::handshake::Enrolment;
use twinlock_core::id::DeviceId;
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered, request::Op};
use twinlock_transport::OsEntropy;

use super::RawClient;
use crate::messages::{copy, done};
use crate::{TestDevice, random};

impl RawClient {
    /// Registers a user with a device, and with a password if one is given.
    ///
    /// # Errors
    /// Why the server refused it.
    pub async fn register(
        &mut self,
        user: &str,
        password: Option<&str>,
    ) -> Result<TestDevice, RefusalReason> {
        let ids = self.begin(user, password.is_some(), true).await?;
        let id = ids.device.as_ref().try_into().map(DeviceId).unwrap();
        let device = TestDevice { id, secret: random() };
        let password = password.map(|text| crate::password(user, text));
        self.enrol(password, Some(device)).await.map(|()| device)
    }

    /// Begins a registration.
    ///
    /// # Errors
    /// Why the server refused it.
    ///
    /// # Panics
    /// If the answer is another one.
    pub async fn begin(
        &mut self,
        user: &str,
        password: bool,
        device: bool,
    ) -> Result<proto::RegisterIds, RefusalReason> {
        let begin = proto::RegisterBegin {
            user: user.to_owned(),
            password,
            device,
            device_label: "laptop".to_owned(),
        };
        match self.ask(Op::RegisterBegin(begin)).await? {
            Answered::RegisterIds(ids) => {
                assert_eq!(ids.server_key, self.key.0.as_slice());
                Ok(ids)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Steps 1 to 3 of a registration that was begun.
    ///
    /// # Errors
    /// Why the server refused one of them.
    ///
    /// # Panics
    /// If an answer is another one.
    pub async fn enrol(
        &mut self,
        password: Option<Credential>,
        device: Option<TestDevice>,
    ) -> Result<(), RefusalReason> {
        let start = |credential| Enrolment::start(credential, &mut OsEntropy).unwrap();
        let password = password.map(start);
        let device = device.map(|device| start(device.credential()));
        let request = |begun: &Option<(Enrolment<Credential>, [u8; 32])>| {
            begun.as_ref().map(|(_, request)| copy(request)).unwrap_or_default()
        };
        let evaluate = proto::RegisterEvaluate {
            password_request: request(&password),
            device_request: request(&device),
        };
        let response = self.ask(Op::RegisterEvaluate(evaluate)).await?;
        let Answered::RegisterResponse(response) = response else { panic!("{response:?}") };
        let key = self.key;
        let finish = |begun: Option<(Enrolment<Credential>, [u8; 32])>, response: Bytes| {
            let Some((enrolment, _)) = begun else { return Bytes::new() };
            let response = response.as_ref().try_into().unwrap();
            copy(&enrolment.finish(response, &key, &mut OsEntropy).unwrap())
        };
        let records = proto::RegisterFinish {
            password_record: finish(password, response.password_response),
            device_record: finish(device, response.device_response),
        };
        self.ask(Op::RegisterFinish(records)).await.map(done)
    }
}
