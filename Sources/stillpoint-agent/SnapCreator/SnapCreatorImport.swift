import Foundation

/// Turns a Snap Creator configuration for KVM (`APP_NAME=kvm`) into a configuration of this agent.
///
/// Every setting of the file ends up in exactly one of three: carried over, carried over as a command that a person
/// gives, or not carried over, with the reason.
struct SnapCreatorImport: Equatable {
    struct Hook: Equatable {
        var name: String
        var quiesce: [String]?
        var unquiesce: [String]?
        var order: Int
    }

    private(set) var configDirectory: String?
    private(set) var retryCount: Int?
    private(set) var hooks: [Hook] = []
    private(set) var volumes: [String] = []
    private(set) var guests: [String] = []
    private(set) var restoredGuests: [String] = []
    private(set) var snapshotName: String?
    /// What became of each setting: a line each.
    private(set) var carried: [String] = []
    private(set) var left: [String] = []

    /// - Throws: ``ConfigurationError`` for a file that is not for KVM, or a value that Snap Creator would not take.
    init(_ file: SnapCreatorFile) throws {
        guard let application = file["APP_NAME"] else {
            throw ConfigurationError("it has no APP_NAME: it is no configuration of Snap Creator")
        }
        guard application.lowercased() == "kvm" else {
            throw ConfigurationError("it is for APP_NAME=\(application.prefix(40)); only kvm can be imported")
        }
        for setting in file.settings { try take(setting) }
        try takeCommands(file)
        nameVolumes()
    }

    // MARK: Settings

    private mutating func take(_ setting: SnapCreatorFile.Setting) throws {
        let value = setting.value
        switch setting.name {
        case "APP_NAME": carried.append("APP_NAME: the plug-in libvirt")
        case "KVM_VM_MAPPING":
            guests = Self.names(value, entries: ";,")
            carried.append(
                "KVM_VM_MAPPING: found anew by discovery (stillpoint guest list); it named \(Self.list(guests))")
        case "KVM_RESTORE_VM_LIST":
            restoredGuests = Self.names(value, entries: ";, ")
            carried.append("KVM_RESTORE_VM_LIST: the arguments of stillpoint guest restore")
        case "KVM_VM_CONFIG_DIR":
            guard value.hasPrefix("/") else { throw Self.wrong(setting, "it is a directory, with its whole path") }
            configDirectory = value
            carried.append("KVM_VM_CONFIG_DIR: pluginConfiguration.libvirt.configDirectory")
        case "KVM_CMD_RETRY_COUNT":
            guard let count = Int(value), (1...100).contains(count) else {
                throw Self.wrong(setting, "it is a whole number from 1 to 100")
            }
            retryCount = count
            carried.append("KVM_CMD_RETRY_COUNT: pluginConfiguration.libvirt.retryCount")
        case "VOLUMES":
            volumes = Self.volumes(value)
            carried.append("VOLUMES: the arguments of stillpoint snapshot create; the volumes must exist on the node")
        case "SNAME":
            snapshotName = value
            carried.append("SNAME: the beginning of --name of stillpoint snapshot create")
        case "NTAP_SNAPSHOT_RETENTIONS": left.append("\(setting.name): \(try Self.retentions(setting))")
        case "NTAP_SNAPSHOT_RETENTION_AGE":
            guard let days = Int(value), days >= 0 else { throw Self.wrong(setting, "it is a whole number of days") }
            left.append("\(setting.name): nothing is deleted by age yet (it said \(days) days)")
        default: if !Self.isCommand(setting.name) { left.append("\(setting.name): \(Self.reason(setting.name))") }
        }
    }

    private static func wrong(_ setting: SnapCreatorFile.Setting, _ why: String) -> ConfigurationError {
        ConfigurationError("line \(setting.line): \(setting.name)=\(setting.value.prefix(60)) is wrong: \(why)")
    }

    /// `daily:7,weekly:4`
    private static func retentions(_ setting: SnapCreatorFile.Setting) throws -> String {
        let parts = setting.value.split(separator: ",").map { $0.split(separator: ":").map(String.init) }
        for part in parts {
            guard part.count == 2, Int(part[1].trimmingCharacters(in: .whitespaces)) != nil else {
                throw wrong(setting, "it is POLICY:COUNT, several with commas between")
            }
        }
        let text = parts.map { "\($0[1].trimmingCharacters(in: .whitespaces)) \($0[0])" }.joined(separator: ", ")
        return "no snapshot is deleted by itself yet; it kept \(text). Delete old ones with stillpoint snapshot delete"
    }

    /// `CONTROLLER:VOLUME,VOLUME;CONTROLLER:VOLUME`
    private static func volumes(_ text: String) -> [String] {
        text.split(separator: ";").flatMap { entry in
            (entry.split(separator: ":", maxSplits: 1).last ?? "").split(separator: ",")
                .map { $0.trimmingCharacters(in: .whitespaces) }
        }.filter { !$0.isEmpty }
    }

    /// The guest of each entry: what stands before the first colon.
    private static func names(_ text: String, entries: String) -> [String] {
        var found: [String] = []
        for entry in text.split(whereSeparator: { entries.contains($0) }) {
            let name = (entry.split(separator: ":").first ?? "").trimmingCharacters(in: .whitespaces)
            if !name.isEmpty, !found.contains(name) { found.append(name) }
        }
        return found
    }

    private static func list(_ names: [String]) -> String { names.isEmpty ? "nobody" : names.joined(separator: ", ") }

    private static let reasons: [(prefix: String, reason: String)] = [
        ("SC_AGENT_TIMEOUT", "a hold has a lease instead, of at most 60 s: stillpoint snapshot create --lease"),
        (
            "SC_AGENT_UNQUIESCE_TIMEOUT",
            "a hold has a lease instead, of at most 60 s: stillpoint snapshot create --lease"
        ),
        ("SC_AGENT_WATCHDOG", "every hold has a watchdog: its lease"),
        ("SC_AGENT", "the agent is enrolled with the node: stillpoint agent token, stillpoint-agent enroll"),
        ("SC_CLONE_TARGET", "a clone belongs to the node: stillpoint clone create"),
        ("SC_TMP_DIR", "nothing is written to disk while something is at rest"),
        ("NTAP_USERS", "credentials of the storage controllers are not used; agents and node have certificates"),
        ("NTAP_PWD", "credentials of the storage controllers are not used; agents and node have certificates"),
        ("NTAP_SNAPMIRROR", "there are no replicas yet"),
        ("SNAPMIRROR", "there are no replicas yet"),
        ("NTAP_SNAPVAULT", "there are no replicas yet"),
        ("SNAPVAULT", "there are no replicas yet"),
        ("NTAP_SNAPSHOT_POLICIES", "there are no schedules yet: run stillpoint snapshot create from cron or a timer"),
        ("NTAP_SNAPSHOT_NODELETE", "no snapshot is deleted by itself"),
        ("NTAP_CONSISTENCY_GROUP", "a snapshot of several volumes is always one cut"),
        ("NTAP_CG", "a snapshot of several volumes is always one cut"),
        ("APP_IGNORE_ERROR", "ask for it with each snapshot: stillpoint snapshot create --allow-lower"),
        ("APP_DEFINED_RESTORE", "a guest is always restored alone: stillpoint guest restore"),
        ("APP_AUTO_DISCOVERY", "discovery is always on"),
        ("VALIDATE_VOLUMES", "discovery always says which guests lie on which volumes"),
        ("SENDTRAP", "there are no notifications yet"), ("SUCCESS_TRAP", "there are no notifications yet"),
        ("SUCCESS_MSG", "there are no notifications yet"), ("OM_", "there are no notifications yet"),
        ("NTAP_ASUP", "there are no notifications yet"), ("LOG_", "the agent logs to its standard error"),
        ("ARCHIVE_LOG", "logs of databases are left to the databases"),
    ]

    private static func reason(_ name: String) -> String {
        reasons.first { name.hasPrefix($0.prefix) }?.reason ?? "there is nothing here that it could set"
    }

    // MARK: Commands

    /// In the order in which Snap Creator ran them, with what runs at that point here.
    private static let quiesceNames = [
        "PRE_APP_QUIESCE_CMD", "APP_QUIESCE_CMD", "POST_APP_QUIESCE_CMD", "PRE_NTAP_CMD",
    ]
    private static let unquiesceNames = [
        "POST_APP_UNQUIESCE_CMD", "APP_UNQUIESCE_CMD", "PRE_APP_UNQUIESCE_CMD", "POST_NTAP_CMD",
    ]
    private static let otherNames = [
        "PRE_CLONE_CREATE_CMD", "POST_CLONE_CREATE_CMD", "PRE_RESTORE_CMD", "POST_RESTORE_CMD", "PRE_EXIT_CMD",
        "POST_NTAP_DATA_TRANSFER_CMD", "PRE_NTAP_CLONE_DELETE_CMD", "POST_NTAP_CLONE_DELETE_CMD", "ARCHIVE_CMD",
        "MOUNT_CMD", "UMOUNT_CMD",
    ]

    private static func split(_ name: String) -> (base: String, number: String)? {
        let digits = name.reversed().prefix { $0.isNumber }
        let base = String(name.dropLast(digits.count))
        guard (quiesceNames + unquiesceNames + otherNames).contains(base) else { return nil }
        return (base, String(digits.reversed()))
    }

    private static func isCommand(_ name: String) -> Bool { split(name) != nil }

    private mutating func takeCommands(_ file: SnapCreatorFile) throws {
        for (order, (before, after)) in zip(Self.quiesceNames, Self.unquiesceNames).enumerated() {
            let numbers = file.settings.compactMap { Self.split($0.name) }
                .filter { $0.base == before || $0.base == after }.map(\.number)
            for number in Set(numbers).sorted() {
                let name = "snapcreator-\(before.lowercased().replacing("_cmd", with: "").replacing("_", with: "-"))"
                var hook = Hook(name: name + number, quiesce: nil, unquiesce: nil, order: order)
                hook.quiesce = takeCommand(file, before + number)
                hook.unquiesce = takeCommand(file, after + number)
                if hook.quiesce != nil || hook.unquiesce != nil { hooks.append(hook) }
            }
        }
        for setting in file.settings where Self.split(setting.name).map({ Self.otherNames.contains($0.base) }) ?? false
        {
            left.append("\(setting.name): no command runs at that point; put it into the script that calls stillpoint")
        }
    }

    private mutating func takeCommand(_ file: SnapCreatorFile, _ name: String) -> [String]? {
        guard let value = file[name] else { return nil }
        switch Self.words(value) {
        case .success(let words):
            guard words[0].hasPrefix("/") else {
                left.append("\(name): \(words[0]) has no whole path; hooks run without a shell and without PATH")
                return nil
            }
            carried.append("\(name): a hook of pluginConfiguration.hook")
            return words
        case .failure(let why):
            left.append("\(name): \(why.description); put it into a script, and the script into a hook")
            return nil
        }
    }

    /// A command as a list of words. What needs a shell is not taken.
    private static func words(_ text: String) -> Result<[String], ConfigurationError> {
        var words: [String] = []
        var word = ""
        var isWord = false
        var quote: Character?
        // Begins a variable of Snap Creator, in quotes too.
        guard !text.contains("%") else { return .failure(ConfigurationError("it has a variable of Snap Creator (%)")) }
        for character in text {
            if let open = quote {
                if character == open { quote = nil } else { word.append(character) }
                if open == "\"", "$`\\".contains(character) { return .failure(ConfigurationError("it needs a shell")) }
            } else if character == "\"" || character == "'" {
                quote = character
                isWord = true
            } else if character.isWhitespace {
                if isWord { words.append(word) }
                (word, isWord) = ("", false)
            } else if "|&;<>()$`\\*?[]{}~#!".contains(character) {
                return .failure(ConfigurationError("“\(character)” in it needs a shell"))
            } else {
                word.append(character)
                isWord = true
            }
        }
        if isWord { words.append(word) }
        guard quote == nil, !words.isEmpty else { return .failure(ConfigurationError("its quotes do not close")) }
        return .success(words)
    }

    private mutating func nameVolumes() {
        guard !hooks.isEmpty, volumes.isEmpty else { return }
        left.append("the hooks' volumes: the file names none (VOLUMES); write them into the hooks")
    }
}
