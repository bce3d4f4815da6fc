/// What an import writes.
extension SnapCreatorImport {
    /// The agent's configuration, in YAML, to be completed with `listen`.
    var yaml: String {
        var lines = ["# Made from a Snap Creator configuration by: stillpoint-agent import-snapcreator", ""]
        lines += ["pluginConfiguration:", "  libvirt:"]
        lines += [
            "    # What Snap Creator did: crash-consistent. With a guest agent in the guests, `agent` is better:",
            "    # it freezes their file systems, and runs VSS in Windows.", "    mode: pause",
        ]
        if let retryCount { lines.append("    retryCount: \(retryCount)") }
        if let configDirectory { lines.append("    configDirectory: \(Self.quoted(configDirectory))") }
        if !hooks.isEmpty {
            lines += ["  hook:", "    hooks:"]
            for hook in hooks {
                lines.append("      - name: \(hook.name)")
                let names = volumes.isEmpty ? "[]   # to be named" : Self.list(volumes)
                lines.append("        volumes: \(names)")
                // Both are asked for: the status of the second is the proof.
                lines.append("        quiesce: \(Self.list(hook.quiesce ?? ["/bin/true"]))")
                lines.append("        unquiesce: \(Self.list(hook.unquiesce ?? ["/bin/true"]))")
                lines.append("        order: \(hook.order)")
            }
        }
        return lines.joined(separator: "\n") + "\n"
    }

    /// What became of each setting, and what a person does next.
    var report: String {
        var lines = ["Carried over:"] + carried.map { "  \($0)" }
        lines += ["", "Not carried over:"] + (left.isEmpty ? ["  nothing"] : left.map { "  \($0)" })
        lines += ["", "Next:"]
        lines.append("  stillpoint-agent configcheck --config agent.yaml")
        lines.append("  stillpoint guest list")
        let volumes = volumes.isEmpty ? "VOLUME…" : volumes.joined(separator: " ")
        let name = snapshotName.map { " --name \($0)-$(date +%Y%m%d%H%M%S)" } ?? ""
        lines.append("  stillpoint snapshot create \(volumes) --consistency application --allow-lower\(name)")
        let guests = restoredGuests.isEmpty ? "GUEST" : restoredGuests.joined(separator: " ")
        lines.append("  stillpoint guest restore \(guests) --dry-run")
        return lines.joined(separator: "\n") + "\n"
    }

    /// A double-quoted scalar of YAML, which is also one of JSON.
    private static func quoted(_ text: String) -> String {
        var out = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": out += "\\\""
            case "\\": out += "\\\\"
            default: out.unicodeScalars.append(scalar)
            }
        }
        return out + "\""
    }

    private static func list(_ words: [String]) -> String { "[" + words.map(quoted).joined(separator: ", ") + "]" }
}
