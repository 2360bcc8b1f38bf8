use super::*;

fn changes() -> Vec<Change> {
    let text = |text: &str| Some(text.to_owned());
    let invite = CredentialImage {
        cid: vec![3, 0xaa],
        user: text("carl"),
        record: vec![4],
        label: "lamp".into(),
        created_ms: 5,
        role: 1,
        expires_ms: 7,
        made_by: text("ada"),
        state: 2,
        used_by: text("carl"),
        mac: vec![11],
    };
    let open_invite = CredentialImage {
        cid: vec![3, 0xbb],
        user: None,
        label: String::new(),
        role: 0,
        made_by: None,
        state: 0,
        used_by: None,
        mac: vec![12],
        ..invite.clone()
    };
    let room = ConversationImage {
        id: 1,
        name: text("lobby"),
        low: None,
        high: None,
        topic: "all".into(),
        server_key: vec![6],
        created_ms: 9,
        made_by: text("ada"),
        kind: 0,
    };
    let audit = ConversationImage {
        id: 3,
        name: text("audit"),
        topic: String::new(),
        made_by: None,
        kind: 3,
        ..room.clone()
    };
    let direct = ConversationImage {
        id: 2,
        name: None,
        low: text("ada"),
        high: text("carl"),
        topic: String::new(),
        made_by: None,
        ..room.clone()
    };
    let person = PersonImage {
        id: 300,
        name: "ada".into(),
        role: 2,
        password: true,
        created_ms: 1_700_000_000_000,
        mac: vec![1, 2],
        state: 0,
    };
    vec![
        Change::Person(person.clone()),
        Change::Credential(invite),
        Change::Credential(open_invite),
        Change::Conversation(room),
        Change::Conversation(direct),
        Change::Joined(MemberJoined { conversation: 1, user: "ada".into(), read: 41 }),
        Change::Left(MemberLeft { conversation: 1, user: "ada".into() }),
        Change::ClassicKey(ClassicKeyImage {
            name: "alarm".into(),
            user: "ada".into(),
            conversation: 1,
            form: 3,
            salt: vec![13],
            sealed: Some(vec![14]),
            created_ms: 15,
            state: 1,
            mac: vec![16],
        }),
        Change::Person(PersonImage { state: 1, ..person }),
        Change::Conversation(audit),
    ]
}

/// Logs must be readable by every later version. The values were computed apart from this code and
/// from prost, from the description of the wire format.
#[test]
fn change__stored_encoding_does_not_change() {
    let expected = [
        "0a190a1708ac021203616461180220012880d095ffbc3132020102",
        "0a2b12290a0203aa12046361726c1a010422046c616d702805300138074203616461480252046361726c5a010b",
        "0a10120e0a0203bb1a0104280538075a010c",
        "0a1a1a18080112056c6f6262792a03616c6c32010638094203616461",
        "0a141a1208021a0361646122046361726c3201063809",
        "0a0b2209080112036164611829",
        "0a092a0708011203616461",
        "0a1f321d0a05616c61726d1203616461180120032a010d32010e380f40014a0110",
        "0a1b0a1908ac021203616461180220012880d095ffbc31320201023801",
        "0a121a1008031205617564697432010638094803",
    ];
    for (change, expected) in changes().into_iter().zip(expected) {
        let encoded = encode(vec![change.clone()]);
        let hex = encoded.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex, expected, "{change:?}");
        assert_eq!(decode(&encoded), Ok(vec![change]));
    }
    let one_by_one = changes().into_iter().flat_map(|change| encode(vec![change]));
    assert_eq!(encode(changes()), one_by_one.collect::<Vec<_>>());
    assert_eq!(decode(&encode(changes())), Ok(changes()));
    assert_eq!(decode(&[]), Ok(Vec::new()));
}

#[test]
fn change__unknown_kind_is_refused_as_newer() {
    // Kinds 7 and 300, after a change that is known.
    for (kind, change) in [(7, vec![0x3a, 2, 8, 1]), (300, vec![0xe2, 0x12, 2, 8, 1])] {
        let mut encoded = encode(changes());
        encoded.extend([0x0a, u8::try_from(change.len()).unwrap()]);
        encoded.extend(change);
        let error = decode(&encoded).unwrap_err();
        assert_eq!(error, BadChange::Newer(kind));
        assert!(StoreError::from(error.clone()).to_string().contains("newer version"));
        let (path, directory) = (Path::new("/r/00000001.log"), Path::new("/r"));
        let opened = error.into_open_error(path, directory);
        assert!(
            matches!(opened, OpenError::Newer { found, known: KINDS, .. } if found == kind),
            "{opened:?}"
        );
    }
}

#[test]
fn change__unknown_fields_are_ignored() {
    // `Left` with an unknown field 15, and an unknown field 16 next to it and next to the change.
    let left = [0x2a, 9, 8, 1, 0x12, 3, b'a', b'd', b'a', 0x78, 5, 0x82, 1, 1, 0xff];
    let mut encoded = vec![0x0a, u8::try_from(left.len()).unwrap()];
    encoded.extend(left);
    encoded.extend([0x82, 1, 1, 0xff]);
    let known = Change::Left(MemberLeft { conversation: 1, user: "ada".into() });
    assert_eq!(decode(&encoded), Ok(vec![known]));
}

#[test]
fn change__malformed_or_empty_is_refused() {
    let encoded = encode(changes());
    for (bytes, what) in [
        (&encoded[..encoded.len() - 1], "cut"),
        (&[0x0a, 0], "empty"),
        // A kind that exists, in the wrong wire type.
        (&[0x0a, 2, 8, 1], "wire type"),
        (&[0xff; 12], "garbage"),
    ] {
        let error = decode(bytes).unwrap_err();
        assert!(matches!(error, BadChange::Malformed(_)), "{what}: {error:?}");
        let opened = error.into_open_error(Path::new("/r/00000001.log"), Path::new("/r"));
        assert!(matches!(opened, OpenError::Damaged { .. }), "{what}: {opened:?}");
    }
}
