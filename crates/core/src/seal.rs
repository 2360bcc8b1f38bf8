//! Sealed frames (section 5): one-time keys from a chain, CBC and HMAC for messages, GCM for file
//! bytes.
//!
//! Opening is the only way to a plaintext, and it verifies the tag. A frame that is not authentic
//! changes neither the chain key nor the counter.

use aes::Aes256;
use aes::cipher::block_padding::{NoPadding, Pkcs7};
use aes::cipher::{BlockModeDecrypt as _, BlockModeEncrypt as _, KeyIvInit as _};
use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut as _, KeyInit as _};
use thiserror::Error;

use crate::frame::{BULK_PREFIX, BULK_TAG, FrameType, HEADER, Header, MAC, MIN_BUCKET};
use crate::keys::ChainKey;
use crate::limits::{MAX_BODY, MAX_BULK};
use crate::schedule;
use crate::wiped::{self, wiped};

/// Bytes of the inner header: `mtype:u8 || body_len:u24`.
const INNER: usize = 4;

/// The type of the message in a SEALED frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MessageType {
    /// The first frame of each direction.
    Ready = 1,
    /// Requests, answers, entries.
    App = 2,
    /// Rekey, from the client.
    Rekey1 = 4,
    /// Rekey, the server's answer and its last frame of the epoch.
    Rekey2 = 5,
    /// Rekey, the client's last frame of the epoch.
    Rekey3 = 6,
    /// Keep-alive request.
    Ping = 7,
    /// Answer to PING.
    Pong = 8,
    /// The last frame of its direction.
    Close = 15,
}

impl MessageType {
    fn parse(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Ready,
            2 => Self::App,
            4 => Self::Rekey1,
            5 => Self::Rekey2,
            6 => Self::Rekey3,
            7 => Self::Ping,
            8 => Self::Pong,
            15 => Self::Close,
            _ => return None,
        })
    }
}

/// An authentic frame, opened in place.
#[derive(Debug, PartialEq, Eq)]
pub enum OpenedFrame<'a> {
    /// From a SEALED frame.
    Message(MessageType, &'a [u8]),
    /// From a BULK frame.
    Bulk {
        /// The transfer's number.
        transfer: u32,
        /// Offset in the file, bytes.
        offset: u64,
        /// 1..=262144 bytes of the file.
        data: &'a [u8],
    },
}

/// A frame failed to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum OpenFrameError {
    /// The tag is wrong: close the connection without an answer. Nothing has changed.
    #[error("a frame was not authentic")]
    Drop,
    /// Authentic, but a protocol violation: CLOSE 1.
    #[error("protocol violated: {0}")]
    Violation(&'static str),
}

/// The payload exceeds the maximum of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{got} bytes exceed the frame limit of {max}")]
pub struct TooLarge {
    /// Bytes to send.
    pub got: usize,
    /// Maximum of a frame, bytes.
    pub max: usize,
}

/// One direction's chain: key, epoch and counter. Each frame has its own key and IV.
#[derive(Debug)]
pub struct Chain {
    key: ChainKey,
    epoch: u32,
    n: u64,
}

impl Chain {
    /// Creates a chain at the start of an epoch.
    #[must_use]
    pub fn new(key: ChainKey, epoch: u32) -> Self {
        Self { key, epoch, n: 0 }
    }

    /// Creates a chain in the middle of an epoch, as the test vectors specify it.
    #[cfg(test)]
    pub(crate) fn at(key: ChainKey, epoch: u32, n: u64) -> Self {
        Self { key, epoch, n }
    }

    /// The epoch: the number of rekeys so far.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The number of frames sealed or opened in this epoch.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.n
    }

    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn key(&self) -> &ChainKey {
        &self.key
    }

    /// `ad = type:u8 || len:u24 || epoch:u32 || n:u64`.
    fn ad(&self, header: Header) -> [u8; 16] {
        let mut ad = [0; 16];
        let (head, rest) = ad.split_at_mut(HEADER);
        head.copy_from_slice(&header.to_bytes());
        let (epoch, n) = rest.split_at_mut(4);
        epoch.copy_from_slice(&self.epoch.to_be_bytes());
        n.copy_from_slice(&self.n.to_be_bytes());
        ad
    }

    /// Appends a SEALED frame with this message to `out`.
    ///
    /// # Errors
    /// [`TooLarge`] beyond 65531 bytes; nothing has changed then.
    pub fn seal(
        &mut self,
        mtype: MessageType,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), TooLarge> {
        if body.len() > MAX_BODY {
            return Err(TooLarge { got: body.len(), max: MAX_BODY });
        }
        let mut inner = [0; INNER];
        inner.copy_from_slice(&(body.len() as u32).to_be_bytes());
        if let Some(first) = inner.first_mut() {
            *first = mtype as u8;
        }
        wiped::<{ wiped::FRAME }, _>(|| self.seal_plain(bucket(body.len()), &[&inner, body], out));
        Ok(())
    }

    /// Seals `parts`, zeros up to the bucket's last byte but one, and one byte of padding.
    fn seal_plain(&mut self, bucket: usize, parts: &[&[u8]], out: &mut Vec<u8>) {
        let header = Header { frame: FrameType::Sealed, len: bucket + MAC };
        let ad = self.ad(header);
        let keys = MessageKeys::derive(&self.key.step());
        self.n += 1;

        out.reserve(HEADER + header.len);
        out.extend_from_slice(&header.to_bytes());
        let start = out.len();
        for part in parts {
            out.extend_from_slice(part);
        }
        out.resize(start + bucket, 0);
        let Some(c) = out.get_mut(start..) else { return };
        cbc_encrypt(keys.key(), keys.iv(), c, bucket - 1);
        let tag = schedule::hmac(keys.mac_key(), &[&ad, c]);
        out.extend_from_slice(tag.as_slice());
    }

    /// Seals a whole plaintext, padding included, as the test specifies it.
    #[cfg(test)]
    pub(crate) fn seal_raw(&mut self, plain: &[u8]) -> Vec<u8> {
        let header = Header { frame: FrameType::Sealed, len: plain.len() + MAC };
        let ad = self.ad(header);
        let keys = MessageKeys::derive(&self.key.step());
        self.n += 1;
        let mut c = plain.to_vec();
        let mut cipher = cbc::Encryptor::<Aes256>::new(keys.key().into(), keys.iv().into());
        for block in c.chunks_exact_mut(16) {
            cipher.encrypt_block(block.try_into().unwrap());
        }
        let tag = schedule::hmac(keys.mac_key(), &[&ad, &c]);
        [&header.to_bytes()[..], &c, tag.as_slice()].concat()
    }

    /// Appends a BULK frame with file bytes to `out`.
    ///
    /// # Errors
    /// [`TooLarge`] unless `data` has 1..=262144 bytes; nothing has changed then.
    pub fn seal_bulk(
        &mut self,
        transfer: u32,
        offset: u64,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), TooLarge> {
        if !(1..=MAX_BULK).contains(&data.len()) {
            return Err(TooLarge { got: data.len(), max: MAX_BULK });
        }
        wiped::<{ wiped::FRAME }, _>(|| self.seal_data(transfer, offset, data, out));
        Ok(())
    }

    /// Seals `data`, whose length the caller has checked.
    fn seal_data(&mut self, transfer: u32, offset: u64, data: &[u8], out: &mut Vec<u8>) {
        let header = Header { frame: FrameType::Bulk, len: BULK_PREFIX + data.len() + BULK_TAG };
        let prefix = bulk_prefix(transfer, offset);
        let aad = bulk_aad(&self.ad(header), &prefix);
        let keys = BulkKeys::derive(&self.key.step());
        self.n += 1;

        out.reserve(HEADER + header.len);
        out.extend_from_slice(&header.to_bytes());
        out.extend_from_slice(&prefix);
        let start = out.len();
        out.extend_from_slice(data);
        let Some(buf) = out.get_mut(start..) else { return };
        let tag = gcm_encrypt(keys.key(), keys.nonce(), &aad, buf);
        out.extend_from_slice(&tag);
    }

    /// Opens a frame in place.
    ///
    /// # Errors
    /// [`OpenFrameError`]. The chain has advanced only on a violation, which ends the session.
    pub fn open<'a>(
        &mut self,
        header: Header,
        payload: &'a mut [u8],
    ) -> Result<OpenedFrame<'a>, OpenFrameError> {
        if payload.len() != header.len {
            return Err(OpenFrameError::Drop);
        }
        match header.frame {
            FrameType::Sealed => wiped::<{ wiped::FRAME }, _>(|| self.open_sealed(header, payload)),
            FrameType::Bulk => wiped::<{ wiped::FRAME }, _>(|| self.open_bulk(header, payload)),
            _ => Err(OpenFrameError::Drop),
        }
    }

    fn open_sealed<'a>(
        &mut self,
        header: Header,
        payload: &'a mut [u8],
    ) -> Result<OpenedFrame<'a>, OpenFrameError> {
        let ad = self.ad(header);
        let (mk, next) = self.key.peek();
        let keys = MessageKeys::derive(&mk);
        let (c, tag) = payload
            .split_at_mut_checked(header.len.saturating_sub(MAC))
            .ok_or(OpenFrameError::Drop)?;
        if !schedule::hmac_verify(keys.mac_key(), &[&ad, c], tag) {
            return Err(OpenFrameError::Drop);
        }
        self.key.replace(&next);
        self.n += 1;

        let bucket_len = c.len();
        let inner = cbc_decrypt(keys.key(), keys.iv(), c)
            .ok_or(OpenFrameError::Violation("wrong padding"))?;
        if inner.len() + 1 != bucket_len {
            return Err(OpenFrameError::Violation("padding of more than one byte"));
        }
        let (&[mtype, a, b, l], rest) =
            inner.split_first_chunk().ok_or(OpenFrameError::Violation("no inner header"))?;
        let body_len = u32::from_be_bytes([0, a, b, l]) as usize;
        let (body, fill) = rest
            .split_at_checked(body_len)
            .ok_or(OpenFrameError::Violation("a body longer than its frame"))?;
        if bucket(body_len) != bucket_len {
            return Err(OpenFrameError::Violation("a bucket larger than needed"));
        }
        if fill.iter().any(|&b| b != 0) {
            return Err(OpenFrameError::Violation("a fill that is not zero"));
        }
        let mtype =
            MessageType::parse(mtype).ok_or(OpenFrameError::Violation("a reserved type"))?;
        Ok(OpenedFrame::Message(mtype, body))
    }

    fn open_bulk<'a>(
        &mut self,
        header: Header,
        payload: &'a mut [u8],
    ) -> Result<OpenedFrame<'a>, OpenFrameError> {
        let (prefix, rest) = payload.split_first_chunk_mut().ok_or(OpenFrameError::Drop)?;
        let prefix: [u8; BULK_PREFIX] = *prefix;
        let aad = bulk_aad(&self.ad(header), &prefix);
        let (mk, next) = self.key.peek();
        let keys = BulkKeys::derive(&mk);
        let (data, tag) = rest.split_last_chunk_mut().ok_or(OpenFrameError::Drop)?;
        if !gcm_decrypt(keys.key(), keys.nonce(), &aad, data, tag) {
            return Err(OpenFrameError::Drop);
        }
        self.key.replace(&next);
        self.n += 1;
        let [t0, t1, t2, t3, offset @ ..] = prefix;
        Ok(OpenedFrame::Bulk {
            transfer: u32::from_be_bytes([t0, t1, t2, t3]),
            offset: u64::from_be_bytes(offset),
            data,
        })
    }
}

/// The keys of the next frame of a chain with the key `ck`, and the chain's next key.
///
/// In order: the message key, the two keys of a SEALED frame, the key of a BULK frame. For tests
/// that search memory for leaked keys.
#[cfg(feature = "test-util")]
#[must_use]
pub fn frame_keys(ck: &[u8; 32]) -> ([[u8; 32]; 4], [u8; 32]) {
    let (mk, next) = ChainKey::new(ck).peek();
    let (message, bulk) = (MessageKeys::derive(&mk), BulkKeys::derive(&mk));
    ([*mk, *message.key(), *message.mac_key(), *bulk.key()], *next)
}

/// The smallest bucket for a body of `len` bytes, its inner header and the padding byte.
pub(crate) fn bucket(len: usize) -> usize {
    (len + INNER + 1).next_power_of_two().max(MIN_BUCKET)
}

/// The longest body that fits into a bucket.
pub(crate) fn room(bucket: usize) -> usize {
    bucket.saturating_sub(INNER + 1)
}

fn bulk_prefix(transfer: u32, offset: u64) -> [u8; BULK_PREFIX] {
    let mut prefix = [0; BULK_PREFIX];
    let (t, o) = prefix.split_at_mut(4);
    t.copy_from_slice(&transfer.to_be_bytes());
    o.copy_from_slice(&offset.to_be_bytes());
    prefix
}

fn bulk_aad(ad: &[u8; 16], prefix: &[u8; BULK_PREFIX]) -> [u8; 28] {
    let mut aad = [0; 28];
    let (a, p) = aad.split_at_mut(16);
    a.copy_from_slice(ad);
    p.copy_from_slice(prefix);
    aad
}

/// `key[32] || mac_key[32] || iv[16] = Expand(mk, "tl1 msg", 80)`.
struct MessageKeys(zeroize::Zeroizing<[u8; 80]>);

impl MessageKeys {
    fn derive(mk: &[u8; 32]) -> Self {
        Self(schedule::expand(mk, &[schedule::MESSAGE]))
    }

    fn key(&self) -> &[u8; 32] {
        part::<0, 32, 80>(&self.0)
    }

    fn mac_key(&self) -> &[u8; 32] {
        part::<32, 32, 80>(&self.0)
    }

    fn iv(&self) -> &[u8; 16] {
        part::<64, 16, 80>(&self.0)
    }
}

/// `key[32] || nonce[12] = Expand(mk, "tl1 bulk", 44)`.
struct BulkKeys(zeroize::Zeroizing<[u8; 44]>);

impl BulkKeys {
    fn derive(mk: &[u8; 32]) -> Self {
        Self(schedule::expand(mk, &[schedule::BULK]))
    }

    fn key(&self) -> &[u8; 32] {
        part::<0, 32, 44>(&self.0)
    }

    fn nonce(&self) -> &[u8; 12] {
        part::<32, 12, 44>(&self.0)
    }
}

/// The `LEN` bytes from `FROM` on; the range is checked at compile time.
fn part<const FROM: usize, const LEN: usize, const N: usize>(bytes: &[u8; N]) -> &[u8; LEN] {
    const { assert!(FROM + LEN <= N) };
    #[allow(clippy::expect_used)]
    bytes.get(FROM..).and_then(<[u8]>::first_chunk).expect("checked at compile time")
}

/// Encrypts `buf[..len]` in place and pads it with PKCS#7 to the next block, which must end at the
/// end of `buf`.
pub(crate) fn cbc_encrypt(key: &[u8; 32], iv: &[u8; 16], buf: &mut [u8], len: usize) {
    let cipher = cbc::Encryptor::<Aes256>::new(key.into(), iv.into());
    let total = buf.len();
    // Continuing would send the plaintext. Callers pass a whole bucket and its length less one.
    #[allow(clippy::expect_used)]
    let c = cipher.encrypt_padded::<Pkcs7>(buf, len).expect("room for the padding");
    debug_assert_eq!(c.len(), total);
}

/// Decrypts in place; `None` if the length or the PKCS#7 padding is wrong.
///
/// To be called only after the MAC verifies, so that it is not a padding oracle.
pub(crate) fn cbc_decrypt<'a>(
    key: &[u8; 32],
    iv: &[u8; 16],
    buf: &'a mut [u8],
) -> Option<&'a [u8]> {
    let cipher = cbc::Decryptor::<Aes256>::new(key.into(), iv.into());
    cipher.decrypt_padded::<Pkcs7>(buf).ok()
}

/// Decrypts whole blocks in place and leaves the padding to the caller; `false` if the last block
/// is incomplete.
pub(crate) fn cbc_decrypt_blocks(key: &[u8; 32], iv: &[u8; 16], buf: &mut [u8]) -> bool {
    let cipher = cbc::Decryptor::<Aes256>::new(key.into(), iv.into());
    cipher.decrypt_padded::<NoPadding>(buf).is_ok()
}

/// Encrypts in place and returns the tag.
pub(crate) fn gcm_encrypt(
    key: &[u8; 32],
    nonce: &[u8; 12],
    aad: &[u8],
    buf: &mut [u8],
) -> [u8; BULK_TAG] {
    let cipher = Aes256Gcm::new(key.into());
    // GCM fails only beyond 64 GiB; a frame has at most 256 KiB.
    #[allow(clippy::expect_used)]
    let tag = cipher
        .encrypt_inout_detached(nonce.into(), aad, buf.into())
        .expect("a frame is shorter than GCM's limit");
    tag.into()
}

/// Decrypts in place and returns whether the tag verifies.
pub(crate) fn gcm_decrypt(
    key: &[u8; 32],
    nonce: &[u8; 12],
    aad: &[u8],
    buf: &mut [u8],
    tag: &[u8; BULK_TAG],
) -> bool {
    let cipher = Aes256Gcm::new(key.into());
    cipher.decrypt_inout_detached(nonce.into(), aad, buf.into(), tag.into()).is_ok()
}
