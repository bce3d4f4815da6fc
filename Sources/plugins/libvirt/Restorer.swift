import Foundation
import PluginKit

/// Stops, brings back and starts one guest, and takes that back again.
///
/// Not `Sendable`: it lives on the thread that made it.
final class Restorer {
    private let call: RestoreCall
    private let configuration: LibvirtConfiguration
    private let hypervisor: Hypervisor
    private var guest: Guest?
    private var steps: [String] = []
    private var state: [String: String]
    private var sources: [String: RestoreSource] = [:]
    private let progress: RestoreProgress

    /// How long a guest is waited for that was asked to shut down.
    static let shutdownSeconds = 60.0

    /// - Parameter stateDirectory: the restore's own, the same for all of its steps.
    init(
        _ call: RestoreCall, _ configuration: LibvirtConfiguration, stateDirectory: String
    ) throws(PluginFailure) {
        let isLegal = call.restoreID.allSatisfy { $0.isASCII && ($0.isLetter || $0.isNumber || $0 == "-") }
        guard isLegal, (1...64).contains(call.restoreID.count) else {
            throw PluginFailure(.badRequest, "A restoreID has 1 to 64 letters, digits and -")
        }
        self.call = call
        self.configuration = configuration
        progress = try RestoreProgress(stateDirectory: stateDirectory)
        (hypervisor, guest) = try Survey.hypervisor(call, configuration)
        // What was noted here is at least what the node was told: it may have died before it heard the rest.
        state = try progress.read() ?? call.state ?? [:]
    }

    func run() throws(PluginFailure) -> RestoreAnswer {
        defer { sources.values.forEach { $0.close() } }
        PausePoint.reachBlocking("plugin.restore.\(call.action.rawValue).before")
        switch call.action {
        case .stop: try stop()
        case .apply:
            do throws(PluginFailure) {
                try apply()
            } catch {
                // As it was before this call: the caller knows nothing of what was half done.
                try? takeBackFiles()
                try? takeBackGuest()
                try? progress.write(state)
                throw error
            }
        case .halt:
            RestoreSource.cleanUp(restoreID: call.restoreID)
            try haltUnfinished()
        case .undo:
            RestoreSource.cleanUp(restoreID: call.restoreID)
            if call.state?["unfinished"] != nil { try haltUnfinished() }
            try takeBackFiles()
            try takeBackGuest()
        case .survey: break
        }
        try progress.write(state)
        PausePoint.reachBlocking("plugin.restore.\(call.action.rawValue).after")
        return RestoreAnswer(steps: steps, state: state)
    }

    private func libvirt<Value>(
        _ what: String, _ body: () throws(LibvirtError) -> Value
    ) throws(PluginFailure) -> Value {
        do throws(LibvirtError) {
            return try body()
        } catch {
            throw PluginFailure(.restoreFailed, "\(what): \(error.message)")
        }
    }

    // MARK: Stop

    private func stop() throws(PluginFailure) {
        guard let guest else {
            if !isUndoing { state["before.state"] = "absent" }
            return
        }
        let name = guest.name
        guard !guest.hasSavedState else {
            throw PluginFailure(
                .restoreFailed, "\(name) has a saved state, which does not fit to other disks",
                hint: "Start it, or throw the state away: virsh managedsave-remove \(name)")
        }
        let found = try libvirt("\(name) cannot be looked at") { () throws(LibvirtError) in try guest.state().state }
        // An undo stops what the restore made: before that was something else.
        if !isUndoing {
            state["before.state"] = found == .off ? "off" : "running"
            state["before.xml"] = try libvirt("\(name)'s definition cannot be read") { () throws(LibvirtError) in
                try guest.definition(inactive: guest.isPersistent)
            }
            state["before.autostart"] = "\(guest.startsAlone)"
            state["before.persistent"] = "\(guest.isPersistent)"
        }
        guard found != .off else { return }
        state["stopping"] = "true"
        try progress.write(state)
        let isClean = try halt(guest)
        state["stopping"] = nil
        steps.append(isClean ? "\(name) was shut down" : "\(name) did not shut down by itself and was turned off")
    }

    /// What was before is known: this stops what a restore made, in order to undo that.
    private var isUndoing: Bool { state["before.state"] != nil || state["defined"] != nil }

    /// - Returns: whether it shut down by itself.
    private func halt(_ guest: Guest) throws(PluginFailure) -> Bool {
        try libvirt("\(guest.name) cannot be stopped") { () throws(LibvirtError) in
            try guest.stop(withinSeconds: configuration.shutdownSeconds ?? Self.shutdownSeconds)
        }
    }

    /// A guest that was asked to shut down may do so at any time: that is waited for. One that the restore itself has
    /// started has nothing to lose, and may be booting, when it hears nothing: it is turned off.
    private func haltUnfinished() throws(PluginFailure) {
        if state["stopping"] != nil {
            if let guest, (try? guest.state().state) != .off { _ = try halt(guest) }
            state["stopping"] = nil
            return try progress.write(state)
        }
        guard isUndoing, let started = hypervisor.find(uuid: state["defined"] ?? call.guest),
            (try? started.state().state) != .off
        else { return }
        try libvirt("\(started.name) cannot be turned off") { () throws(LibvirtError) in try started.destroy() }
        steps.append("\(started.name), as the unfinished restore had started it, was turned off")
    }

    // MARK: Apply

    private func apply() throws(PluginFailure) {
        let kept = try Survey.definition(call, guest)
        var definition = try RestoreDefinition(kept)
        let original = try GuestDefinition(kept)
        RestoreSource.cleanUp(restoreID: call.restoreID)
        for source in call.sources ?? [] {
            sources[source.name] = try RestoreSource(source, restoreID: call.restoreID)
        }
        if let beside = call.beside {
            let nvram = original.nvram.map { "\($0).\(beside.uuid)" }
            definition.becomeAnother(name: beside.name, uuid: beside.uuid, nvram: nvram)
            definition.keepDisks(Set((call.disks ?? [:]).keys))
        } else {
            definition.changeGeneration()
        }
        for (target, disk) in (call.disks ?? [:]).sorted(by: { $0.key < $1.key }) {
            let format = original.disks.first { $0.target == target }?.format
            try restore(disk, target, format: format, &definition)
        }
        PausePoint.reachBlocking("plugin.restore.copied")
        try swapFiles()
        PausePoint.reachBlocking("plugin.restore.swapped")
        try restoreFirmware(original)
        let name = call.beside?.name ?? original.name
        let text = definition.text
        state["defined"] = call.beside?.uuid ?? original.uuid
        try progress.write(state)
        try libvirt("\(name) cannot be defined") { () throws(LibvirtError) in try hypervisor.define(text) }
        PausePoint.reachBlocking("plugin.restore.defined")
        steps.append(guest == nil ? "\(name) is defined" : "\(name) has the definition of the snapshot")
        steps += definition.notes
        let defined = try libvirt("\(name) cannot be found") { () throws(LibvirtError) in
            try hypervisor.guest(uuid: call.beside?.uuid ?? original.uuid)
        }
        if call.beside == nil { defined.setStartsAlone(call.artifacts["autostart"] == "true") }
        try start(defined, name)
    }

    private func restore(
        _ disk: RestoreCall.Disk, _ target: String, format: String?, _ definition: inout RestoreDefinition
    ) throws(PluginFailure) {
        switch disk.way {
        case "keep": break
        case "attach":
            guard let export = disk.export, let colon = export.portal.lastIndex(of: ":") else {
                throw PluginFailure(.badRequest, "It is not said where the clone for \(target) is")
            }
            var usage: String?
            if let secret = export.secret {
                let name = export.iqn
                try add(name, to: "secrets")
                try libvirt("A secret cannot be kept") { () throws(LibvirtError) in
                    try hypervisor.keepSecret(usage: name, value: secret)
                }
                usage = name
            }
            let host = export.portal[..<colon].filter { $0 != "[" && $0 != "]" }
            try definition.replace(
                target,
                with: .iscsi(
                    host: String(host), port: String(export.portal[export.portal.index(after: colon)...]),
                    iqn: export.iqn, lun: export.lun, initiator: export.initiator, user: export.user,
                    secretUsage: usage))
            steps.append("\(target) is the clone at \(export.iqn)")
        case "copy":
            guard let source = disk.source.flatMap({ sources[$0] }), let path = disk.path,
                let destination = disk.destination, destination.hasPrefix("/")
            else { throw PluginFailure(.badRequest, "It is not said what to copy for \(target)") }
            if call.beside != nil, fileStatus(destination) != nil {
                throw PluginFailure(.restoreFailed, "\(destination) is there already", hint: "Choose another name")
            }
            let original = try source.path(path)
            try add(destination, to: "fresh")
            try FileReplacement.copy(original, to: destination, call.restoreID)
            try restoreBacking(FileReplacement.fresh(destination, call.restoreID), format, source, destination)
            if call.beside != nil { try definition.replace(target, with: .file(path: destination)) }
            steps.append("\(target) was copied out of the snapshot to \(destination)")
        default: throw PluginFailure(.badRequest, "\(disk.way) is no way to restore a disk")
        }
    }

    /// Images that the copy stands on, and that are gone. One that is there is left alone: others may stand on it, too.
    private func restoreBacking(
        _ image: String, _ format: String?, _ source: RestoreSource, _ destination: String
    ) throws(PluginFailure) {
        // A raw image says nothing of the kind: what it begins with was written by the guest.
        guard format == "qcow2", let lower = try BackingChain.nearest(image) else { return }
        let slash = destination.lastIndex(of: "/") ?? destination.startIndex
        let path = lower.hasPrefix("/") ? lower : "\(destination[..<slash])/\(lower)"
        guard fileStatus(path) == nil else { return }
        let parent = path.lastIndex(of: "/").map { String(path[..<$0]) } ?? "/"
        guard let resolved = resolvedPath(parent), let mount = MountTable.current().mount(containing: resolved) else {
            throw PluginFailure(.restoreFailed, "\(path), on which the image stands, is gone, and so is its directory")
        }
        let below = resolved.dropFirst(mount.mountPoint == "/" ? 0 : mount.mountPoint.utf8.count)
        let name = path.split(separator: "/").last ?? ""
        let original = try source.path("\(mount.root == "/" ? "" : mount.root)\(below)/\(name)")
        try add(path, to: "fresh")
        try FileReplacement.copy(original, to: path, call.restoreID)
        steps.append("\(path), on which the image stands, was copied as well")
        let lowerFormat = try BackingChain.format(FileReplacement.fresh(path, call.restoreID))
        try restoreBacking(FileReplacement.fresh(path, call.restoreID), lowerFormat, source, path)
    }

    /// All copies are there and durable: now they are put in place.
    private func swapFiles() throws(PluginFailure) {
        for path in lines("fresh") { try swap(path) }
        state["fresh"] = nil
        try progress.write(state)
        for path in lines("swapped") {
            steps.append("What was there before is kept as \(FileReplacement.kept(path, call.restoreID))")
        }
    }

    /// Puts the copy of one file in place. Noted before: a note without its deed is none.
    private func swap(_ path: String) throws(PluginFailure) {
        try add(path, to: fileStatus(path) == nil ? "added" : "swapped")
        _ = try FileReplacement.swap(path, call.restoreID)
    }

    /// Notes one more line, before what it stands for is done.
    private func add(_ line: String, to key: String) throws(PluginFailure) {
        if !lines(key).contains(line) { state[key, default: ""] += line + "\n" }
        try progress.write(state)
    }

    private func restoreFirmware(_ original: GuestDefinition) throws(PluginFailure) {
        guard hypervisor.isLocal else { return }
        if let packed = call.artifacts["nvram"], let path = original.nvram, let bytes = GuestArtifacts.unpack(packed) {
            try put(bytes, call.beside.map { "\(path).\($0.uuid)" } ?? path)
            steps.append("The UEFI variables are those of the snapshot")
        }
        let files = call.artifacts.filter { $0.key.hasPrefix("tpm.") }
        guard !files.isEmpty else { return }
        let directory = "\(GuestArtifacts.stateDirectory)/\(call.beside?.uuid ?? original.uuid)"
        // libvirt gives what is in it to the user that the TPM's emulator runs as, who must get there.
        for place in [GuestArtifacts.stateDirectory, directory] where mkdir(place, 0o711) == 0 { chmod(place, 0o711) }
        for (key, packed) in files.sorted(by: { $0.key < $1.key }) {
            let relative = key.dropFirst("tpm.".count)
            guard !relative.contains(".."), let bytes = GuestArtifacts.unpack(packed) else { continue }
            try put(bytes, "\(directory)/\(relative)")
        }
        steps.append("The state of the TPM is that of the snapshot")
    }

    private func put(_ bytes: [UInt8], _ path: String) throws(PluginFailure) {
        let parent = path.lastIndex(of: "/").map { String(path[..<$0]) } ?? "/"
        do {
            try FileManager.default.createDirectory(
                atPath: parent, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        } catch {
            throw PluginFailure(.restoreFailed, "The directory \(parent) cannot be made: \(error)")
        }
        try add(path, to: "fresh")
        try writeFile(FileReplacement.fresh(path, call.restoreID), bytes)
        try swap(path)
    }

    private func start(_ guest: Guest, _ name: String) throws(PluginFailure) {
        if let memory = call.memory {
            guard let source = sources[memory.source] else {
                throw PluginFailure(.badRequest, "It is not said where the memory image is")
            }
            let path = try source.path(memory.path)
            try libvirt("\(name) cannot go on from its memory image") { () throws(LibvirtError) in
                try hypervisor.restore(memory: path)
            }
            steps.append("\(name) goes on where the snapshot stopped it")
        } else if call.start ?? true {
            try libvirt("\(name) is restored, but does not start") { () throws(LibvirtError) in try guest.start() }
            steps.append("\(name) is started")
        }
    }

    // MARK: Undo

    private func lines(_ key: String) -> [String] { (state[key] ?? "").split(separator: "\n").map(String.init) }

    /// Files as they were. What a guest wrote since the restore is lost: it is what is undone.
    private func takeBackFiles() throws(PluginFailure) {
        if let uuid = state["defined"], let running = hypervisor.find(uuid: uuid),
            (try? running.state().state) != .off
        {
            _ = try halt(running)
        }
        for path in lines("fresh") { unlink(FileReplacement.fresh(path, call.restoreID)) }
        for path in lines("added") { unlink(path) }
        // Where the note went with the host's memory: what is kept beside a file tells as much.
        let known = ["fresh", "added", "swapped"].flatMap(lines)
        let planned = (lines("copies") + lines("firmware") + keptTPM()).filter { !known.contains($0) }
        for path in planned { unlink(FileReplacement.fresh(path, call.restoreID)) }
        // Named after a guest that only this restore knows: nobody else's.
        if let beside = state["beside"], !beside.isEmpty, hypervisor.find(uuid: beside) == nil {
            for path in planned where path.hasSuffix(".\(beside)") { unlink(path) }
            try? FileManager.default.removeItem(atPath: "\(GuestArtifacts.stateDirectory)/\(beside)")
        }
        for path in lines("swapped") + planned where fileStatus(FileReplacement.kept(path, call.restoreID)) != nil {
            // What the restored guest wrote is not thrown away either, where the restore was made and then undone.
            if call.action == .undo, call.state?["unfinished"] == nil, fileStatus(path) != nil {
                try FileReplacement.rename(path, "\(path).undone-\(call.restoreID)")
                steps.append("What was restored is kept as \(path).undone-\(call.restoreID)")
            }
            try FileReplacement.rename(FileReplacement.kept(path, call.restoreID), path)
            steps.append("\(path) is what it was before")
        }
        for key in ["fresh", "added", "swapped"] { state[key] = nil }
    }

    /// The files of the TPM beside which this restore kept what they were.
    private func keptTPM() -> [String] {
        guard hypervisor.isLocal else { return [] }
        let suffix = FileReplacement.kept("", call.restoreID)
        return ["tpm2", "tpm1.2"].flatMap { folder in
            let directory = "\(GuestArtifacts.stateDirectory)/\(call.guest)/\(folder)"
            return directoryEntries(directory).filter { $0.hasSuffix(suffix) }
                .map { "\(directory)/\($0.dropLast(suffix.count))" }
        }
    }

    private func takeBackGuest() throws(PluginFailure) {
        let uuid = state["defined"] ?? state["beside"] ?? call.guest
        if let xml = state["before.xml"] {
            if state["before.persistent"] != "false" {
                try libvirt("The definition from before cannot be brought back") { () throws(LibvirtError) in
                    try hypervisor.define(xml)
                }
            }
            let guest = hypervisor.find(uuid: call.guest)
            guest?.setStartsAlone(state["before.autostart"] == "true")
            if call.action == .undo, state["before.state"] == "running", let guest {
                if (try? guest.state().state) == .off {
                    try libvirt("\(guest.name) does not start") { () throws(LibvirtError) in try guest.start() }
                }
                steps.append("\(guest.name) runs with what it was before")
            }
        } else if state["defined"] != nil || state["beside"] != nil || state["before.state"] == "absent",
            let guest = hypervisor.find(uuid: uuid)
        {
            let name = guest.name
            try libvirt("\(name) cannot be undefined") { () throws(LibvirtError) in
                // Beside the original, everything is its own; of a guest that was deleted, files may have been left.
                try guest.undefine(withFiles: state["before.state"] == nil)
            }
            steps.append("\(name) is gone again")
        }
        for usage in lines("secrets") { hypervisor.forgetSecret(usage: usage) }
        state["secrets"] = nil
        state["defined"] = nil
        state["beside"] = nil
    }
}
