//! Real proxies and balancers as child processes. `scripts/middles.sh` finds or unpacks them.

use std::collections::HashMap;
use std::fs::{create_dir_all, read_to_string, write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::common::{LONG, Running};

/// A name that only the middles resolve, as their own machine.
pub const NAME: &str = "chat.example";

/// The programs, as `scripts/middles.sh` lists them.
pub struct Programs(HashMap<String, PathBuf>);

impl Programs {
    /// # Panics
    /// If the script did not run.
    pub fn find() -> Self {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let file = target.join("middles/env");
        let listed = read_to_string(&file).unwrap_or_else(|error| {
            panic!("{}: {error}: ./scripts/middles.sh writes it", file.display())
        });
        let lines = listed.lines().filter_map(|line| line.split_once(' '));
        Self(lines.map(|(name, path)| (name.to_owned(), path.into())).collect())
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn command(&self, name: &str) -> Command {
        let path = &self.0[name];
        let mut command = Command::new(path);
        if let Some(root) = self.root(name) {
            command.env("LD_LIBRARY_PATH", &self.0["libraries"]);
            command.env("PYTHONPATH", root.join("usr/lib/python3/dist-packages"));
        }
        command
    }

    /// Where a program is unpacked, unless it is installed.
    fn root(&self, name: &str) -> Option<&Path> {
        let root = self.0.get("root")?;
        self.0[name].starts_with(root).then_some(root)
    }

    /// A path that a program has compiled in, below the place where it is unpacked.
    fn path(&self, name: &str, path: &str) -> String {
        let root = self.root(name).unwrap_or(Path::new("/"));
        root.join(path).display().to_string()
    }
}

/// What a middle does, and its configuration.
#[derive(Debug, Clone, Copy)]
pub enum Config {
    /// A file of `contrib/`, whose directory is the name of the program.
    File(&'static str),
    /// squid, for CONNECT.
    Squid,
    /// microsocks, for SOCKS5.
    Socks,
    /// mitmproxy, which makes certificates for any name.
    Mitm,
}

impl Config {
    /// The program's name in the list of [`Programs`].
    pub fn program(self) -> &'static str {
        match self {
            Self::File(file) => match file.split_once('/').unwrap().0 {
                "apache" => "apache2",
                program => program,
            },
            Self::Squid => "squid",
            Self::Socks => "microsocks",
            Self::Mitm => "mitmdump",
        }
    }
}

/// The certificate that middles present, and the CA that issued it.
struct Certificates {
    chain: PathBuf,
    key: PathBuf,
    both: PathBuf,
    ca: PathBuf,
}

impl Certificates {
    fn make(dir: &Path) -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Middle Test CA");
        let ca = params.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate().unwrap();
        let names = ["localhost".to_owned(), NAME.to_owned()];
        let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap().pem();
        let key = key.serialize_pem();
        let file = |name: &str, text: &str| {
            let path = dir.join(name);
            write(&path, text).unwrap();
            path
        };
        Self {
            both: file("both.pem", &format!("{leaf}{key}")),
            chain: file("chain.pem", &leaf),
            key: file("key.pem", &key),
            ca: file("ca.pem", &ca),
        }
    }
}

/// A middle. Ends with its processes when dropped.
pub struct Middle<'a> {
    programs: &'a Programs,
    config: Config,
    pub address: SocketAddr,
    dir: TempDir,
    certificates: Certificates,
    running: Option<Running>,
}

impl<'a> Middle<'a> {
    /// Starts a middle before the server, to whose two ports it connects at these addresses.
    pub fn start(
        programs: &'a Programs,
        config: Config,
        tls: SocketAddr,
        plain: SocketAddr,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Some run as another user.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let certificates = Certificates::make(dir.path());
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut middle = Self { programs, config, address, dir, certificates, running: None };
        middle.configure(tls, plain);
        middle.restart();
        middle
    }

    /// What a client has to trust.
    pub fn ca_file(&self) -> PathBuf {
        match self.config {
            Config::Mitm => self.dir.path().join("mitm/mitmproxy-ca-cert.pem"),
            _ => self.certificates.ca.clone(),
        }
    }

    /// Ends it, if it runs, and starts it again.
    pub fn restart(&mut self) {
        self.end();
        let mut running = Running::start(&mut self.command());
        let until = Instant::now() + LONG;
        while TcpStream::connect(self.address).is_err() {
            if !running.is_running() || Instant::now() > until {
                panic!("{:?} does not listen: {:?}", self.config, running.killed());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.running = Some(running);
    }

    fn end(&mut self) {
        if let Some(running) = self.running.take() {
            // Each is one process. Apache waits for the end of open WebSockets, so it is killed.
            running.signal(Signal::TERM);
            running.end(Duration::from_secs(1));
        }
    }

    /// A file of `contrib/` with the substitutions of its README.
    fn substituted(&self, file: &str, tls: SocketAddr, plain: SocketAddr) -> String {
        let certificates = &self.certificates;
        let chain = match self.config.program() {
            "haproxy" => &certificates.both,
            _ => &certificates.chain,
        };
        contrib(file)
            .replace("0.0.0.0:443", &self.address.to_string())
            .replace("chat.example.org:443", &format!("localhost:{}", self.address.port()))
            .replace("127.0.0.1:8443", &tls.to_string())
            .replace("127.0.0.1:8080", &plain.to_string())
            .replace("/etc/ssl/chat.example.org.pem", chain.to_str().unwrap())
            .replace("/etc/ssl/private/chat.example.org.key", certificates.key.to_str().unwrap())
            .replace("chat.example.org", "localhost")
    }

    /// Writes the main configuration, which includes or begins the tested file.
    fn configure(&self, tls: SocketAddr, plain: SocketAddr) {
        let dir = self.dir.path().display();
        let program = self.config.program();
        let path = |path: &str| self.programs.path(program, path);
        let site = match self.config {
            Config::File(file) => self.substituted(file, tls, plain),
            _ => String::new(),
        };
        let main = match program {
            "nginx" => {
                let module = path("usr/lib/nginx/modules/ngx_stream_module.so");
                let site = if site.contains("stream {") {
                    site
                } else {
                    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
                    let temporary = temporary.map(|name| format!("{name}_temp_path {dir}/{name};"));
                    format!("http {{ access_log off; {}\n{site}}}\n", temporary.concat())
                };
                format!(
                    "daemon off;\nmaster_process off;\npid {dir}/pid;\nload_module {module};\n\
                     events {{}}\n{site}"
                )
            }
            "apache2" => {
                let modules = ["mpm_event", "authz_core", "socache_shmcb", "ssl", "proxy"];
                let modules = modules.into_iter().chain(["proxy_http", "proxy_wstunnel"]);
                let modules = modules.map(|name| {
                    let path = path(&format!("usr/lib/apache2/modules/mod_{name}.so"));
                    format!("LoadModule {name}_module {path}\n")
                });
                format!(
                    "ServerRoot {dir}\nDefaultRuntimeDir {dir}\nPidFile {dir}/pid\n\
                     ErrorLog {dir}/log\nServerName localhost\nUser nobody\nGroup nogroup\n\
                     {}{site}",
                    modules.collect::<String>()
                )
            }
            "stunnel" => format!("foreground = yes\npid =\n{site}"),
            "caddy" => {
                format!("{{\n\tadmin off\n\tauto_https off\n\tdefault_bind 127.0.0.1\n}}\n{site}")
            }
            "squid" => {
                let own = self.programs.root(program).map_or(String::new(), |_| {
                    format!(
                        "mime_table {}\nerror_directory {}\nicon_directory {}\n\
                         unlinkd_program {}\nlogfile_daemon {}\n",
                        path("usr/share/squid/mime.conf"),
                        path("usr/share/squid-langpack/templates"),
                        path("usr/share/squid/icons"),
                        path("usr/lib/squid/unlinkd"),
                        path("usr/lib/squid/log_file_daemon"),
                    )
                });
                format!(
                    "http_port {}\nhttp_access allow all\nhosts_file {dir}/hosts\n\
                     pid_filename none\naccess_log none\ncache_log /dev/null\ncache deny all\n\
                     coredump_dir {dir}\npinger_enable off\nnetdb_filename none\n\
                     cache_effective_user nobody\nshutdown_lifetime 0 seconds\n{own}",
                    self.address
                )
            }
            // Resolves each name as this machine.
            "mitmdump" => "def server_connect(data):\n    \
                 data.server.address = (\"127.0.0.1\", data.server.address[1])\n"
                .to_owned(),
            _ => site,
        };
        let name = if program == "mitmdump" { "config.py" } else { "config" };
        write(self.dir.path().join(name), main).unwrap();
        write(self.dir.path().join("hosts"), format!("127.0.0.1 {NAME}\n")).unwrap();
        create_dir_all(self.dir.path().join("mitm")).unwrap();
    }

    fn command(&self) -> Command {
        let dir = self.dir.path();
        let program = self.config.program();
        let config = dir.join(if program == "mitmdump" { "config.py" } else { "config" });
        let mut command = self.programs.command(program);
        command.current_dir(dir).env("HOME", dir);
        let port = self.address.port().to_string();
        match program {
            "nginx" => command.arg("-p").arg(dir).args(["-e", "stderr", "-c"]).arg(config),
            "haproxy" => command.arg("-db").arg("-f").arg(config),
            // One process, so that none is left when it is killed.
            "apache2" => command.args(["-X", "-f"]).arg(config),
            "stunnel" => command.arg(config),
            "caddy" => command.args(["run", "--adapter", "caddyfile", "--config"]).arg(config),
            "squid" => command.args(["-N", "-d", "1", "-f"]).arg(config),
            "microsocks" => self.with_hosts(&mut command).args(["-i", "127.0.0.1", "-p", &port]),
            "mitmdump" => command
                .args(["--listen-host", "127.0.0.1", "--ssl-insecure", "-p", &port, "-s"])
                .arg(config)
                .arg("--set")
                .arg(format!("confdir={}", dir.join("mitm").display())),
            other => panic!("{other}"),
        };
        command
    }

    /// Gives a program without such an option a file of host names.
    fn with_hosts<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let wrapper = &self.programs.0["nss_wrapper"];
        let hosts = self.dir.path().join("hosts");
        command.env("LD_PRELOAD", wrapper).env("NSS_WRAPPER_HOSTS", hosts)
    }
}

impl Drop for Middle<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// The text of a file of `contrib/`.
pub fn contrib(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../contrib").join(file);
    read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
