import API
import Foundation
import Logging
import PluginKit

/// Takes what lies on volumes out of use before they are reverted, and back into use afterwards.
///
/// Prepare goes from the top down (applications, machines, file systems), finish the other way. What was prepared is
/// noted on the tmpfs, so that a restarted agent can finish it. If one plug-in fails to prepare, everything prepared
/// so far is brought back, and the request fails.
actor RestoreRunner {
    static let timeoutSeconds = 300.0
    private static let memoryLimit = 64
    private static let guestPlugin = "libvirt"
    /// Large images are copied.
    private static let guestSeconds = 24.0 * 3_600

    /// What `prepare` leaves for `finish`.
    private struct Note: Codable {
        struct Part: Codable {
            var plugin: String
            var resources: [ResourceInfo]
        }

        /// In the order in which they were prepared.
        var parts: [Part]
        var steps: [String]
        var isPrepared: Bool
    }

    private let discovery: Discovery
    private let directory: String
    private let logger: Logger
    private var preparing: [String: Task<RestoreResponse, any Error>] = [:]
    private var finishing: [String: Task<RestoreResponse, any Error>] = [:]
    private var finished: [(id: String, response: RestoreResponse)] = []
    /// Plug-ins at work on steps of guests' restores, by restore.
    private var guestSteps: [String: (number: Int, session: any PluginSession)] = [:]
    private var guestStepCount = 0
    /// Restores that were taken back: a step of one that the network kept until now must not be carried out any more.
    private var takenBack: [String] = []

    /// - Parameter directory: of the notes; on a tmpfs.
    init(discovery: Discovery, directory: String, logger: Logger) {
        self.discovery = discovery
        self.directory = directory
        self.logger = logger
    }

    func prepare(_ request: RestoreRequest) async throws -> RestoreResponse {
        try SafeIdentifier.check(request.restoreID, what: "restore's identifier")
        let id = request.restoreID
        if let task = preparing[id] { return try await task.value }
        let task = Task { try await performPrepare(request) }
        preparing[id] = task
        defer { preparing[id] = nil }
        return try await task.value
    }

    func finish(_ request: RestoreRequest) async throws -> RestoreResponse {
        try SafeIdentifier.check(request.restoreID, what: "restore's identifier")
        let id = request.restoreID
        if let done = finished.first(where: { $0.id == id }) { return done.response }
        if let task = finishing[id] { return try await task.value }
        let task = Task { try await performFinish(request) }
        finishing[id] = task
        defer { finishing[id] = nil }
        let response = try await task.value
        finished.append((id, response))
        if finished.count > Self.memoryLimit { finished.removeFirst() }
        return response
    }

    /// One step of a guest's restore. They come one after another, but for a `halt` or an `undo` of a step whose node
    /// died: that step is ended first.
    func restoreGuest(_ request: GuestRestoreAgentRequest) async throws -> JSONValue {
        let (id, action) = (request.call.restoreID, request.call.action)
        try SafeIdentifier.check(id, what: "restore's identifier")
        guard let plugin = await discovery.catalog.plugin(named: Self.guestPlugin) else {
            throw APIFailure(
                status: 409, code: "noPlugin", message: "There is no plug-in \(Self.guestPlugin) on this host",
                hint: "Install it")
        }
        if action == .halt || action == .undo { await endGuestStep(id) }
        guard action != .apply || !takenBack.contains(id) else {
            throw APIFailure(
                status: 409, code: "restoreTakenBack", message: "Restore \(id) was taken back before this request came")
        }
        let answer = try await guestStep(plugin, request)
        // What is noted of a restore under way, or of one that is done and may be taken back, is kept.
        if action == .survey { forget(id) } else { forgetOldGuestRestores() }
        do {
            let value = try answer.get()
            if action == .undo { forget(id) }
            if case .array(let steps)? = value["steps"] {
                for step in steps.compactMap(\.stringValue) { logger.notice("\(step)", metadata: ["restore": "\(id)"]) }
            }
            return value
        } catch {
            let cause = error as? PluginFailure
            throw APIFailure(
                status: 409, code: "guestRestoreFailed", message: cause?.message ?? "\(error)", hint: cause?.hint)
        }
    }

    private func guestStep(
        _ plugin: InstalledPlugin, _ request: GuestRestoreAgentRequest
    ) async throws -> Result<JSONValue, any Error> {
        let id = request.call.restoreID
        // Only a survey looks at where files lie: for that it needs the file systems.
        let found =
            request.call.action == .survey
            ? await discovery.discover(DiscoverRequest(volumes: request.volumes)) : nil
        let state = "\(directory)/\(id)/\(Self.guestPlugin)"
        try FileManager.default.createDirectory(
            atPath: state, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        let encoded = try JSONDecoder().decode(JSONValue.self, from: try APIJSON.encoder().encode(request.call))
        guestStepCount += 1
        let number = guestStepCount
        let answer: Result<JSONValue, any Error> = await discovery.ask(
            plugin, .restoreResource,
            ResourceRestoreParameters(
                request: encoded,
                devices: (found?.devices ?? []).map { PluginDevice(volume: $0.volume, naa: $0.naa, path: $0.path) },
                resources: (found?.resources ?? []).filter { $0.plugin != Self.guestPlugin }.map(PluginResource.init),
                volumes: request.volumes.map(PluginVolume.init), config: plugin.config, stateDirectory: state),
            Self.guestSeconds
        ) { session in await self.began(id, number, session) }
        if guestSteps[id]?.number == number { guestSteps[id] = nil }
        return answer
    }

    private func began(_ restoreID: String, _ number: Int, _ session: any PluginSession) {
        guestSteps[restoreID] = (number, session)
    }

    /// What a step of a restore that is to be taken back has done until now is noted; it must not do more.
    private func endGuestStep(_ restoreID: String) async {
        if !takenBack.contains(restoreID) { takenBack.append(restoreID) }
        if takenBack.count > Self.memoryLimit { takenBack.removeFirst() }
        guard let running = guestSteps[restoreID] else { return }
        logger.notice("a step of the restore is still under way; ending it", metadata: ["restore": "\(restoreID)"])
        await running.session.kill()
    }

    private func forgetOldGuestRestores() {
        func age(_ id: String) -> Date? {
            let note = "\(directory)/\(id)/\(Self.guestPlugin)/guest-restore.json"
            return (try? FileManager.default.attributesOfItem(atPath: note))?[.modificationDate] as? Date
        }
        let names = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
        let known = names.compactMap { id in age(id).map { (id, $0) } }.sorted { $0.1 > $1.1 }
        for (id, _) in known.dropFirst(Self.memoryLimit) where guestSteps[id] == nil { forget(id) }
    }

    private func performPrepare(_ request: RestoreRequest) async throws -> RestoreResponse {
        if let note = read(request.restoreID), note.isPrepared { return RestoreResponse(steps: note.steps) }
        let found = await discovery.discover(DiscoverRequest(volumes: request.volumes))
        var note = Note(parts: [], steps: [], isPrepared: false)
        for layer in Discovery.order.reversed() {
            let resources = found.resources.filter {
                $0.layer == ProtectionLayer(layer) || (layer == .fileSystem && $0.layer == .hostFileSystem)
            }
            for (plugin, own) in Dictionary(grouping: resources, by: \.plugin).sorted(by: { $0.key < $1.key }) {
                note.parts.append(Note.Part(plugin: plugin, resources: own))
                try write(note, request.restoreID)
                do {
                    let steps = try await run(
                        .prepareRestore, plugin: plugin, resources: own, devices: found.devices, request: request)
                    note.steps += steps
                } catch {
                    logger.error("the preparation of a restore failed, undoing it: \(error)")
                    let undone = await undo(note, request)
                    throw failure(
                        "restorePrepareFailed", plugin: plugin, error: error,
                        then: undone.isEmpty
                            ? "What was stopped for it is running again"
                            : "Not everything could be started again: \(undone.joined(separator: "; "))")
                }
            }
        }
        note.isPrepared = true
        try write(note, request.restoreID)
        return RestoreResponse(steps: note.steps)
    }

    /// Brings back what was prepared, the failed part included; returns what could not be.
    private func undo(_ note: Note, _ request: RestoreRequest) async -> [String] {
        var failures: [String] = []
        let devices = discovery.devices.resolve(request.volumes).devices
        for part in note.parts.reversed() {
            do {
                _ = try await run(
                    .finishRestore, plugin: part.plugin, resources: part.resources, devices: devices, request: request)
            } catch {
                failures.append("\(part.plugin): \(error)")
            }
        }
        if failures.isEmpty { forget(request.restoreID) }
        return failures
    }

    private func performFinish(_ request: RestoreRequest) async throws -> RestoreResponse {
        let devices: [DeviceInfo]
        let parts: [Note.Part]
        if let note = read(request.restoreID) {
            devices = discovery.devices.resolve(request.volumes).devices
            parts = note.parts.reversed()
        } else {
            // Prepared before the host was booted anew, or not by us: those whose artifacts there are may want them.
            let found = await discovery.discover(DiscoverRequest(volumes: request.volumes))
            devices = found.devices
            let concerned = Set(request.artifacts.keys.compactMap { $0.split(separator: "/").first.map(String.init) })
            let byPlugin = Dictionary(grouping: found.resources.filter { concerned.contains($0.plugin) }, by: \.plugin)
            parts = byPlugin.sorted { $0.value[0].layer > $1.value[0].layer }
                .map { Note.Part(plugin: $0.key, resources: $0.value) }
        }
        var steps: [String] = []
        for part in parts {
            do {
                steps += try await run(
                    .finishRestore, plugin: part.plugin, resources: part.resources, devices: devices, request: request)
            } catch {
                throw failure(
                    "restoreFinishFailed", plugin: part.plugin, error: error,
                    then: "Put it right and finish the restore again")
            }
        }
        forget(request.restoreID)
        return RestoreResponse(steps: steps)
    }

    private func run(
        _ method: PluginMethod, plugin name: String, resources: [ResourceInfo], devices: [DeviceInfo],
        request: RestoreRequest
    ) async throws -> [String] {
        guard let plugin = await discovery.catalog.plugin(named: name) else {
            throw PluginFailure(.notSupported, "plug-in \(name) is no longer on this host", hint: "Install it")
        }
        let state = "\(directory)/\(request.restoreID)/\(name)"
        try FileManager.default.createDirectory(
            atPath: state, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        var artifacts: [String: [String: String]] = [:]
        for (key, value) in request.artifacts where key.hasPrefix(name + "/") {
            artifacts[String(key.dropFirst(name.count + 1))] = value
        }
        let answer: Result<RestoreResult, any Error> = await discovery.ask(
            plugin, method,
            RestoreParameters(
                restoreID: request.restoreID, resources: resources.map(PluginResource.init),
                devices: devices.map { PluginDevice(volume: $0.volume, naa: $0.naa, path: $0.path) },
                artifacts: method == .finishRestore ? artifacts : nil, config: plugin.config, stateDirectory: state,
                protectedPaths: discovery.protectedPaths),
            Self.timeoutSeconds)
        do {
            let steps = try answer.get().steps
            for step in steps { logger.notice("\(step)", metadata: ["restore": "\(request.restoreID)"]) }
            return steps
        } catch let error as PluginFailure where error.code == .notSupported || error.code == .unknownMethod {
            // It has nothing to stop or start; what lies below it still has.
            return []
        }
    }

    private func failure(_ code: String, plugin: String, error: any Error, then: String) -> APIFailure {
        let cause = error as? PluginFailure
        let hint = [cause?.hint, then].compactMap(\.self).joined(separator: ". ")
        return APIFailure(
            status: 409, code: code, message: "Plug-in \(plugin): \(cause?.message ?? String(describing: error))",
            hint: hint)
    }

    private func path(_ id: String) -> String { "\(directory)/\(id)/note.json" }

    private func read(_ id: String) -> Note? {
        FileManager.default.contents(atPath: path(id)).flatMap { try? APIJSON.decoder().decode(Note.self, from: $0) }
    }

    private func write(_ note: Note, _ id: String) throws {
        try FileManager.default.createDirectory(
            atPath: "\(directory)/\(id)", withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        try APIJSON.encoder().encode(note).write(to: URL(fileURLWithPath: path(id)), options: .atomic)
    }

    private func forget(_ id: String) { try? FileManager.default.removeItem(atPath: "\(directory)/\(id)") }
}
