public import API
public import Foundation

/// Everything that `stillpoint serve` can be told. Each value comes from a flag, else the environment, else the file,
/// else the default here; docs/configuration.md has the table.
public struct NodeConfiguration: Sendable, Equatable {
    /// Where pool, catalog and keys live. Default `/var/lib/stillpoint` for root, else `~/.local/share/stillpoint`.
    public var dataDirectory: String
    /// Default 127.0.0.1:11170. Beyond loopback the API speaks TLS only.
    public var apiListen: ListenAddress
    /// Default 127.0.0.1:3260.
    public var iscsiListen: ListenAddress
    /// `HOST:PORT` that initiators are told in discovery, where it is not the one listened on (address translation).
    public var iscsiAdvertise: ListenAddress?
    /// Further iSCSI portals; the one of ``iscsiListen`` is in group 1.
    public var iscsiPortals: [PortalSetting]
    /// How portal groups reach the volumes when the node starts; those that are not named are optimized.
    public var iscsiGroups: [UInt16: PortalAccess]
    /// Default `auto`.
    public var apiTLS: TLSChoice
    /// Certificate chain, PEM; nil for one issued by the node's own authority.
    public var apiCertificateFile: String?
    /// Its key, PEM; given together with the certificate.
    public var apiKeyFile: String?
    /// Host names and addresses that the node's own server certificate names, besides loopback and the address
    /// listened on.
    public var apiNames: [String]
    /// A file or block device; default `DATA/pool`.
    public var poolPath: String?
    /// The most bytes that the pool's file grows to; nil for what its file system has room for.
    public var poolMaximumBytes: UInt64?
    /// Percent of the pool's space at which initiators are told that it runs out. 1 to 99; default 80.
    public var poolSoftThresholdPercent: Int
    /// How calls reach the disk. Default `auto`.
    public var poolIO: IOChoice
    /// The most that a scrub reads in a second, in bytes. Default 100 MiB.
    public var poolScrubBytesPerSecond: UInt64
    /// Whether written zeros become unmapped blocks. Default true.
    public var poolDetectsZeros: Bool
    /// What the pool may use of the memory, besides a little for each snapshot; nil for 768 MiB.
    public var poolMemoryBytes: UInt64?
    /// Default `info`.
    public var logLevel: LogLevel
    /// Where `node.json` is put for the CLI; by default where `RunDirectory` says. Nil puts none.
    public var runDirectory: String?
    /// Seconds between two looks at an agent. 1 to 3600; default 15.
    public var agentPollSeconds: Int
    /// Seconds that running jobs and sessions get to end at shutdown. 1 to 600; default 20.
    public var shutdownGraceSeconds: Int

    public enum TLSChoice: String, Sendable, CaseIterable {
        /// TLS beyond loopback, plain on loopback.
        case auto
        /// TLS everywhere.
        case required
    }

    public enum IOChoice: String, Sendable, CaseIterable {
        /// io_uring where the system allows it.
        case auto
        case pread
        /// Refuses to start where the system forbids io_uring.
        case uring
    }

    public enum LogLevel: String, Sendable, CaseIterable {
        case trace, debug, info, notice, warning, error, critical
    }

    /// The defaults for this user and environment.
    public init(environment: [String: String] = ProcessInfo.processInfo.environment) {
        dataDirectory = Self.defaultDataDirectory(environment)
        apiListen = ListenAddress(host: "127.0.0.1", port: 11_170)
        iscsiListen = ListenAddress(host: "127.0.0.1", port: 3_260)
        iscsiPortals = []
        iscsiGroups = [:]
        apiTLS = .auto
        apiNames = []
        poolSoftThresholdPercent = 80
        poolIO = .auto
        poolScrubBytesPerSecond = 100 << 20
        poolDetectsZeros = true
        logLevel = .info
        runDirectory = RunDirectory.path(environment: environment)
        agentPollSeconds = 15
        shutdownGraceSeconds = 20
    }

    private static func defaultDataDirectory(_ environment: [String: String]) -> String {
        if getuid() == 0 { return "/var/lib/stillpoint" }
        if let base = environment["XDG_DATA_HOME"], base.hasPrefix("/") { return base + "/stillpoint" }
        return (environment["HOME"] ?? "") + "/.local/share/stillpoint"
    }

    /// The pool's file or device.
    public var effectivePoolPath: String { poolPath ?? dataDirectory + "/pool" }

    public var usesTLS: Bool { apiTLS == .required || !apiListen.isLoopback }
}

/// An iSCSI portal and the portal group that it is in.
public struct PortalSetting: Sendable, Equatable {
    public var address: ListenAddress
    public var group: UInt16

    public init(address: ListenAddress, group: UInt16) {
        self.address = address
        self.group = group
    }
}

/// `HOST:PORT`, `[V6]:PORT` or `:PORT`; port 0 lets the system choose.
public struct ListenAddress: Sendable, Equatable, CustomStringConvertible {
    public var host: String
    /// 0 to 65535.
    public var port: Int

    public init(host: String, port: Int) {
        self.host = host
        self.port = port
    }

    public init?(_ text: String) {
        guard let colon = text.lastIndex(of: ":"), let port = UInt16(text[text.index(after: colon)...]),
            text[text.index(after: colon)...].allSatisfy(\.isASCIIDigit)
        else { return nil }
        var host = text[..<colon]
        if host.hasPrefix("["), host.hasSuffix("]") {
            host = host.dropFirst().dropLast()
            guard host.contains(":") else { return nil }
        } else if host.contains(":") {
            return nil
        }
        guard host.allSatisfy({ $0.isASCII && ($0.isLetter || $0.isNumber || ".-:_%".contains($0)) }) else {
            return nil
        }
        self.init(host: host.isEmpty ? "0.0.0.0" : String(host), port: Int(port))
    }

    public var description: String { host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)" }

    /// True where only this machine can reach it.
    public var isLoopback: Bool {
        if host == "localhost" || host == "::1" { return true }
        let parts = host.split(separator: ".", omittingEmptySubsequences: false)
        return parts.count == 4 && parts.allSatisfy { UInt8($0) != nil } && parts[0] == "127"
    }

    /// True where it stands for all addresses of the machine.
    public var isWildcard: Bool { host == "0.0.0.0" || host == "::" }
}

extension Character {
    fileprivate var isASCIIDigit: Bool { isASCII && isNumber }
}
