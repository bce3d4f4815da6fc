import API
import BlockStore
import Foundation

/// One setting: its key in the file, its environment variable, its flag, and how its text becomes a value.
struct ConfigurationSetting: Sendable {
    /// Dotted for a nested key in the file, e.g. `api.listen`.
    var key: String
    var environment: String
    /// Without dashes.
    var flag: String
    /// Sets the value, or says what is wrong with the text.
    var apply: @Sendable (String, inout NodeConfiguration) -> String?

    init(_ key: String, _ environment: String, apply: @escaping @Sendable (String, inout NodeConfiguration) -> String?)
    {
        self.key = key
        self.environment = environment
        self.flag = key == "data" ? "data" : key.replacing(".", with: "-")
        self.apply = apply
    }
}

extension ConfigurationSetting {
    static let all: [ConfigurationSetting] = [
        ConfigurationSetting("data", "STILLPOINT_DATA") { text, configuration in
            guard text.hasPrefix("/") else { return "must be an absolute path, not \"\(text)\"" }
            configuration.dataDirectory = text
            return nil
        },
        listen("api.listen", "STILLPOINT_API_LISTEN", \.apiListen),
        choice("api.tls", "STILLPOINT_API_TLS", \.apiTLS),
        path("api.certificate", "STILLPOINT_API_CERTIFICATE", \.apiCertificateFile),
        path("api.key", "STILLPOINT_API_KEY", \.apiKeyFile),
        ConfigurationSetting("api.names", "STILLPOINT_API_NAMES") { text, configuration in
            let names = text.split(separator: ",").map { $0.trimmingCharacters(in: .whitespaces) }
            for name in names where !CertificateName.isValid(name) {
                return "\"\(name)\" is no host name and no IP address"
            }
            configuration.apiNames = names
            return nil
        },
        listen("iscsi.listen", "STILLPOINT_ISCSI_LISTEN", \.iscsiListen),
        ConfigurationSetting("iscsi.advertise", "STILLPOINT_ISCSI_ADVERTISE") { text, configuration in
            guard let address = ListenAddress(text), address.port != 0, !address.isWildcard else {
                return "must be HOST:PORT that initiators can reach, not \"\(text)\""
            }
            configuration.iscsiAdvertise = address
            return nil
        },
        ConfigurationSetting("iscsi.portals", "STILLPOINT_ISCSI_PORTALS") { text, configuration in
            configuration.iscsiPortals = []
            for item in list(text) {
                let parts = item.split(separator: "=")
                guard parts.count == 2, let address = ListenAddress(String(parts[0])), let group = UInt16(parts[1])
                else {
                    return "\"\(item)\" is not HOST:PORT=GROUP such as 192.0.2.7:3260=2"
                }
                configuration.iscsiPortals.append(PortalSetting(address: address, group: group))
            }
            return configuration.iscsiPortals.count <= 32 ? nil : "has more than 32 portals"
        },
        ConfigurationSetting("iscsi.groups", "STILLPOINT_ISCSI_GROUPS") { text, configuration in
            configuration.iscsiGroups = [:]
            for item in list(text) {
                let parts = item.split(separator: "=")
                guard parts.count == 2, let group = UInt16(parts[0]),
                    let access = PortalAccess(rawValue: String(parts[1]))
                else {
                    let states = PortalAccess.allCases.map(\.rawValue).joined(separator: ", ")
                    return "\"\(item)\" is not GROUP=STATE with one of the states \(states)"
                }
                configuration.iscsiGroups[group] = access
            }
            return nil
        },
        path("pool.path", "STILLPOINT_POOL_PATH", \.poolPath),
        ConfigurationSetting("pool.maximumSize", "STILLPOINT_POOL_MAXIMUM_SIZE") { text, configuration in
            guard let bytes = ByteSize.parse(text), bytes >= 64 << 20 else {
                return "must be a size of at least 64MiB such as 500GiB, not \"\(text)\""
            }
            configuration.poolMaximumBytes = bytes
            return nil
        },
        number("pool.softThreshold", "STILLPOINT_POOL_SOFT_THRESHOLD", 1...99, \.poolSoftThresholdPercent),
        choice("pool.io", "STILLPOINT_POOL_IO", \.poolIO),
        ConfigurationSetting("pool.scrubRate", "STILLPOINT_POOL_SCRUB_RATE") { text, configuration in
            guard let bytes = ByteSize.parse(text), bytes >= 1 << 20 else {
                return "must be bytes in a second, at least 1MiB, such as 100MiB, not \"\(text)\""
            }
            configuration.poolScrubBytesPerSecond = bytes
            return nil
        },
        ConfigurationSetting("pool.zeroDetection", "STILLPOINT_POOL_ZERO_DETECTION") { text, configuration in
            guard let value = Bool(text) else { return "must be true or false, not \"\(text)\"" }
            configuration.poolDetectsZeros = value
            return nil
        },
        ConfigurationSetting("pool.memory", "STILLPOINT_POOL_MEMORY") { text, configuration in
            guard let bytes = ByteSize.parse(text), bytes >= PoolOptions.leastMemoryBytes else {
                return "must be a size of at least 64MiB such as 512MiB, not \"\(text)\""
            }
            configuration.poolMemoryBytes = bytes
            return nil
        },
        choice("log.level", "STILLPOINT_LOG_LEVEL", \.logLevel),
        ConfigurationSetting("runDirectory", "STILLPOINT_RUN_DIR") { text, configuration in
            guard text.hasPrefix("/") else { return "must be an absolute path, not \"\(text)\"" }
            configuration.runDirectory = text
            return nil
        },
        number("agents.pollSeconds", "STILLPOINT_AGENTS_POLL_SECONDS", 1...3600, \.agentPollSeconds),
        number("shutdownGraceSeconds", "STILLPOINT_SHUTDOWN_GRACE_SECONDS", 1...600, \.shutdownGraceSeconds),
    ]

    /// All variables of the node that are read elsewhere than here; any other `STILLPOINT_` variable is a mistake of
    /// spelling only where it resembles one of ours, so unknown ones are let be.
    static let byKey = Dictionary(uniqueKeysWithValues: all.map { ($0.key, $0) })

    private static func list(_ text: String) -> [String] {
        text.split(separator: ",").map { $0.trimmingCharacters(in: .whitespaces) }
    }

    private static func listen(
        _ key: String, _ environment: String, _ path: any WritableKeyPath<NodeConfiguration, ListenAddress> & Sendable
    ) -> ConfigurationSetting {
        ConfigurationSetting(key, environment) { text, configuration in
            guard let address = ListenAddress(text) else {
                return "must be HOST:PORT such as 127.0.0.1:3260 or [::1]:3260, not \"\(text)\""
            }
            configuration[keyPath: path] = address
            return nil
        }
    }

    private static func path(
        _ key: String, _ environment: String, _ path: any WritableKeyPath<NodeConfiguration, String?> & Sendable
    ) -> ConfigurationSetting {
        ConfigurationSetting(key, environment) { text, configuration in
            guard text.hasPrefix("/") else { return "must be an absolute path, not \"\(text)\"" }
            configuration[keyPath: path] = text
            return nil
        }
    }

    private static func choice<Choice: RawRepresentable & CaseIterable & Sendable>(
        _ key: String, _ environment: String, _ path: any WritableKeyPath<NodeConfiguration, Choice> & Sendable
    ) -> ConfigurationSetting where Choice.RawValue == String {
        ConfigurationSetting(key, environment) { text, configuration in
            guard let choice = Choice(rawValue: text) else {
                return "must be one of \(Choice.allCases.map(\.rawValue).joined(separator: ", ")), not \"\(text)\""
            }
            configuration[keyPath: path] = choice
            return nil
        }
    }

    private static func number(
        _ key: String, _ environment: String, _ range: ClosedRange<Int>,
        _ path: any WritableKeyPath<NodeConfiguration, Int> & Sendable
    ) -> ConfigurationSetting {
        ConfigurationSetting(key, environment) { text, configuration in
            guard let value = Int(text), range.contains(value) else {
                return "must be a number from \(range.lowerBound) to \(range.upperBound), not \"\(text)\""
            }
            configuration[keyPath: path] = value
            return nil
        }
    }
}

/// Sizes as people write them.
public enum ByteSize {
    /// `4096`, `10GiB`, `1TiB`, `500MB`; nil for anything else and beyond 2^63.
    public static func parse(_ text: String) -> UInt64? {
        let digits = text.prefix { $0.isASCII && $0.isNumber }
        guard let number = UInt64(digits) else { return nil }
        let units: [String: UInt64] = [
            "": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "kB": 1_000, "KB": 1_000,
            "MB": 1_000_000, "GB": 1_000_000_000, "TB": 1_000_000_000_000,
        ]
        guard let unit = units[text.dropFirst(digits.count).trimmingCharacters(in: .whitespaces)] else { return nil }
        let (bytes, overflow) = number.multipliedReportingOverflow(by: unit)
        return overflow || bytes > UInt64(Int64.max) ? nil : bytes
    }
}
