import Glibc
import PluginKit

/// What the plug-in is about to do to a guest, has done, and has undone.
struct GuestRecord: Codable, Sendable {
    enum Step: String, Codable { case intent, held, refused, released }
    enum Action: String, Codable { case freeze, suspend }

    var step: Step
    var action: Action
    var uuid: String
    var name: String
    var uri: String
    /// libvirt's number of this run of the guest: another run is not the one that was held.
    var runID: Int
    /// The file its memory is written to, which is worth nothing without a snapshot around it.
    var memoryFile: String?
}

enum GuestJournal {
    private static let agentSeconds = 5.0

    private enum Outcome: Sendable {
        case released(String)
        case nothing
        case failed(String)
    }

    /// Thaws and resumes what dead processes of the plug-in left at rest.
    ///
    /// An intent without an answer is undone too: the request may have reached the guest, or may reach it when a guest
    /// agent that hangs goes on. If it did not, and somebody else froze or suspended the guest right then, his is
    /// undone; leaving ours for ever would be worse.
    static func recover(_ parameters: RecoverParameters, _ configuration: LibvirtConfiguration) async -> RecoverResult {
        var result = RecoverResult(released: [])
        for journal in HoldJournal<GuestRecord>.abandoned(
            stateDirectory: parameters.stateDirectory, plugin: LibvirtPlugin.name)
        {
            var open: [String: GuestRecord] = [:]
            for record in journal.entries() {
                switch record.step {
                case .intent, .held: open[record.uuid] = record
                case .refused, .released: open[record.uuid] = nil
                }
            }
            let outcomes = await withTaskGroup(of: Outcome.self) { group in
                for record in open.values {
                    group.addTask { await OwnThread.run { release(record, configuration) } }
                }
                return await group.reduce(into: [Outcome]()) { $0.append($1) }
            }
            var isDone = true
            for outcome in outcomes {
                switch outcome {
                case .released(let uuid): result.released.append(uuid)
                case .nothing: break
                case .failed(let reason):
                    isDone = false
                    result.failures.append(reason)
                }
            }
            // Kept when something is left: the next recovery tries again.
            if isDone { journal.remove() }
        }
        // A process that outlived its agent releases by itself; killed before that, it leaves it to the next recovery.
        for held in HoldJournal<GuestRecord>.held(
            stateDirectory: parameters.stateDirectory, plugin: LibvirtPlugin.name)
        {
            result.failures.append("process \(held.process) still has the guests of hold \(held.holdID)")
        }
        result.released.sort()
        return result
    }

    private static func release(_ record: GuestRecord, _ configuration: LibvirtConfiguration) -> Outcome {
        // A guest may have moved to another of our hosts while it was frozen.
        let others = configuration.connections.filter { $0 != record.uri }
        var failure: String?
        for uri in [record.uri] + others {
            do {
                let hypervisor = try Hypervisor.open(uri, configuration)
                let guest = try hypervisor.guest(uuid: record.uuid)
                guard let runID = guest.runID else { continue }
                // A new run of it begins with nothing frozen. On another host the number means nothing.
                if uri == record.uri, runID != record.runID { continue }
                return try release(record, guest)
            } catch {
                if (error as? LibvirtError)?.isNoDomain == true { continue }
                failure = failure ?? Discover.text(error)
            }
        }
        if let failure { return .failed("guest \(record.name) may still be at rest: \(failure)") }
        remove(record.memoryFile)
        return .nothing
    }

    private static func release(_ record: GuestRecord, _ guest: Guest) throws -> Outcome {
        switch record.action {
        case .suspend:
            if record.memoryFile != nil { guest.abortJob() }
            let wasPaused = try guest.state().state == .paused
            if wasPaused { try guest.resume() }
            remove(record.memoryFile)
            return wasPaused ? .released(record.uuid) : .nothing
        case .freeze:
            try guest.limitAgent(seconds: agentSeconds)
            defer { guest.restoreAgentLimit() }
            return try guest.thaw() > 0 ? .released(record.uuid) : .nothing
        }
    }

    static func remove(_ path: String?) {
        if let path { unlink(path) }
    }
}
