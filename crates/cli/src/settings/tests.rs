//! The settings against their declaration and against the table in `docs/operating.md`.

use std::time::Duration;

use super::numbers::{LimitsFile, Setting, TimingFile};
use super::*;

fn defaults() -> Config {
    Config::new(PathBuf::new(), SocketAddr::from(([127, 0, 0, 1], 0)))
}

/// The tables of numbers, each with the values of `config`.
fn tables(config: &mut Config) -> [(&'static str, Vec<Setting>); 2] {
    [("limits", LimitsFile::settings(config)), ("timing", TimingFile::settings(config))]
}

#[test]
fn settings__number_out_of_range_reports_range_and_position() {
    for (table, numbers) in tables(&mut defaults()) {
        for Setting { key, least, most, .. } in numbers {
            let read = |number: String| {
                toml::from_str::<ServeArgs>(&format!("\n[{table}]\n{key} = {number}\n"))
            };
            for good in [least, most] {
                assert!(read(good.to_string()).is_ok(), "{key} = {good}");
            }
            let below = i128::from(least) - 1;
            let wrong = [below, i128::from(most) + 1, i128::from(i64::MAX), -7];
            for bad in wrong.map(|bad| bad.to_string()) {
                let error = read(bad.clone()).unwrap_err();
                let range = format!("{least} to {most}");
                assert!(error.message().contains(&range), "{key} = {bad}: {error}");
                assert!(error.span().is_some_and(|span| span.start > 8), "{key} = {bad}");
            }
            for bad in ["1.5", "true", "\"1\"", "9223372036854775808"] {
                assert!(read(bad.to_owned()).is_err(), "{key} = {bad}");
            }
        }
    }
}

#[test]
fn settings__port_out_of_range_is_refused_with_range() {
    for name in ["port", "classic-port", "origin-port", "plain-port"] {
        for bad in ["70000", "-1"] {
            let error = toml::from_str::<ServeArgs>(&format!("{name} = {bad}")).unwrap_err();
            assert!(error.message().contains("0 to 65535"), "{name} = {bad}: {error}");
        }
        assert!(toml::from_str::<ServeArgs>(&format!("{name} = 65535")).is_ok(), "{name}");
    }
}

#[test]
fn settings__every_number_sets_a_field_of_its_own() {
    let mut config = defaults();
    // A different value for each, within its range.
    let mut text = String::new();
    let mut value = 60;
    for (table, numbers) in tables(&mut config) {
        text += &format!("[{table}]\n");
        for Setting { key, .. } in numbers {
            value += 1;
            text += &format!("{key} = {value}\n");
        }
    }
    let file: ServeArgs = toml::from_str(&text).unwrap();
    file.limits.apply(&mut config);
    file.timing.apply(&mut config);
    let values = tables(&mut config).into_iter().flat_map(|(_, numbers)| numbers);
    let values: Vec<_> = values.map(|setting| setting.value).collect();
    assert_eq!(values, (61..=value).map(Some).collect::<Vec<_>>());
    // Settings of equal range and default, which only their fields tell apart.
    let limits = &config.limits;
    assert_eq!([limits.unauthenticated, config.classic.connections], [61, 67]);
    assert_eq!([limits.sessions_per_device, limits.password_sessions_per_user], [65, 66]);
    assert_eq!([limits.bounds.memberships, limits.follows_per_session], [77, 78]);
    let timing = [config.timing.ping_following, config.timing.ping_answer];
    assert_eq!(timing.map(|time| time.as_secs()), [89, 91]);
    // Units, by example.
    assert_eq!(config.limits.invite, Duration::from_secs(69 * 3600));
    assert_eq!(config.limits.file, 70 << 20);
    assert_eq!(config.limits.text_rate, 83 << 10);
    assert_eq!(config.limits.search, Duration::from_secs(88));
    assert_eq!(config.come_back, Duration::from_secs(95));
}

#[test]
fn settings__host_resolves_address_scope_or_name() {
    for (host, is) in [
        ("127.0.0.1", "127.0.0.1:5"),
        ("::1", "[::1]:5"),
        ("[::1]", "[::1]:5"),
        ("fe80::1%1", "[fe80::1%1]:5"),
    ] {
        assert_eq!(resolve("--host", host, 5).unwrap().to_string(), is);
    }
    assert!(resolve("--host", "localhost", 5).unwrap().ip().is_loopback());
    assert!(resolve("--host", "no such host", 5).unwrap_err().message.contains("--host"));
}

fn settings(toml: &str) -> Result<Settings, Failure> {
    Settings::new(toml::from_str(&format!("data = \"/d\"\n{toml}")).unwrap())
}

#[test]
fn settings__plain_port_beyond_loopback_needs_listed_proxy() {
    let local = settings("plain-port = 80").unwrap().server.plain;
    assert_eq!(local, Some("127.0.0.1:80".parse().unwrap()));
    let refused = settings("plain-port = 80\nplain-host = \"0.0.0.0\"").unwrap_err();
    assert!(refused.message.contains("--plain-host"), "{}", refused.message);
    for list in ["proxies", "forwarded-from"] {
        let named = format!("plain-port = 80\nplain-host = \"0.0.0.0\"\n{list} = [\"192.0.2.1\"]");
        assert!(settings(&named).is_ok(), "{list}");
    }
    let both = "proxies = [\"192.0.2.1\"]\nforwarded-from = [\"192.0.2.1\"]";
    assert!(settings(both).unwrap_err().message.contains("192.0.2.1"));
    assert_eq!(settings("plain-host = \"0.0.0.0\"").unwrap().server.plain, None);
}

#[test]
fn settings__websocket_path_applies_to_public_address() {
    let public = |toml: &str| settings(toml).unwrap().server.public.unwrap().to_string();
    assert_eq!(public("public-host = \"a\"\nwebsocket-path = \"/b\""), "a:8443/b");
    for (host, follows) in
        [("a", true), ("a/twinlock", true), ("a:1", false), ("a:8443/twinlock", false)]
    {
        let config = settings(&format!("public-host = \"{host}\"")).unwrap().server;
        assert_eq!(config.public_port_follows, follows, "{host}");
    }
    assert_eq!(public("public-host = \"a:1/c\"\nwebsocket-path = \"/b\""), "a:1/c");
    for bad in ["b", "/b/", "/", "/b?c"] {
        let refused = settings(&format!("websocket-path = \"{bad}\"")).unwrap_err();
        assert!(refused.message.contains("--websocket-path"), "{bad}");
    }
}

mod documentation {
    //! `docs/operating.md` lists every setting with its default and range.

    use std::collections::BTreeSet;

    use clap::CommandFactory as _;

    use super::*;
    use crate::args::Cli;

    const OPERATING: &str = include_str!("../../../../docs/operating.md");

    /// The cells of the table whose header begins with `header`.
    fn rows(header: &str) -> Vec<Vec<&'static str>> {
        let mut lines = OPERATING.lines().skip_while(|line| !line.starts_with(header));
        assert!(lines.next().is_some() && lines.next().is_some(), "{header}");
        lines
            .take_while(|line| line.starts_with('|'))
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect()
    }

    /// The texts in backticks.
    fn quoted(cell: &str) -> Vec<&str> {
        cell.split('`').skip(1).step_by(2).collect()
    }

    /// The number before any explanation.
    fn number(cell: &str) -> Option<u64> {
        match cell.split_once(" x cores") {
            Some((factor, "")) => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                Some(factor.parse::<u64>().ok()? * cores as u64)
            }
            _ => cell.split(' ').next()?.parse().ok(),
        }
    }

    #[test]
    fn settings__documented_numbers_match_declaration() {
        for (table, numbers) in tables(&mut defaults()) {
            let mut documented = BTreeSet::new();
            for row in rows(&format!("| key in `[{table}]`")) {
                let [key, range, default, ..] = row[..] else { panic!("{row:?}") };
                let key = quoted(key)[0];
                assert!(documented.insert(key), "{key} is documented twice");
                let setting = numbers.iter().find(|setting| setting.key == key);
                let Setting { least, most, value, .. } = setting.expect(key);
                let power = most.is_power_of_two() && *most > 1 << 32;
                let most = if power { format!("2^{}", most.ilog2()) } else { most.to_string() };
                assert_eq!(range, format!("{least} to {most}"), "{key}");
                assert_eq!(number(default), *value, "{key}: {default}");
            }
            assert_eq!(documented.len(), numbers.len(), "[{table}] is documented");
        }
    }

    #[test]
    fn settings__documented_options_match_declaration() {
        let unknown = toml::from_str::<ServeArgs>("no-such = 1").unwrap_err();
        let keys = quoted(unknown.message()).split_off(1);
        let mut keys: BTreeSet<_> = keys.into_iter().collect();
        // They have tables of their own.
        assert!(keys.remove("limits") && keys.remove("timing"));
        let mut cli = Cli::command();
        let serve = cli.find_subcommand_mut("serve").unwrap();
        let mut options: BTreeSet<_> =
            serve.get_arguments().filter_map(|arg| arg.get_long()).collect();
        // It concerns one start, so it has neither an environment variable nor a row.
        assert!(options.remove("qr"));
        for row in rows("| flag |") {
            let [flags, variables, key, default, ..] = row[..] else { panic!("{row:?}") };
            for key in quoted(key) {
                assert!(keys.remove(key.split(' ').next().unwrap()), "{key}");
            }
            for (flag, variable) in quoted(flags).into_iter().zip(quoted(variables)) {
                let flag = flag.trim_start_matches('-').split(' ').next().unwrap();
                assert!(options.remove(flag), "--{flag}");
                let arg = serve.get_arguments().find(|arg| arg.get_long() == Some(flag)).unwrap();
                assert_eq!(arg.get_env().unwrap(), variable);
                let help = arg.get_help().unwrap().to_string();
                if let Some((_, help)) = help.split_once("[default: ") {
                    assert_eq!(default.trim_matches('`'), help.trim_end_matches(']'), "--{flag}");
                }
            }
        }
        assert!(keys.is_empty() && options.is_empty(), "not documented: {keys:?} {options:?}");
    }
}
