//! `people.db`: accounts, credentials, conversations, members and classic keys.
