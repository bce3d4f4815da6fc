import Foundation
import PluginKit

/// Takes guests off volumes that are reverted as a whole, and starts those again that ran.
struct VolumeRestore {
    private struct Stopped: Codable {
        var uuid: String
        var name: String
        var uri: String
    }

    private let parameters: RestoreParameters
    private let configuration: LibvirtConfiguration

    init(_ parameters: RestoreParameters, _ configuration: LibvirtConfiguration) {
        self.parameters = parameters
        self.configuration = configuration
    }

    private var notePath: String { "\(parameters.stateDirectory)/\(LibvirtPlugin.name)-stopped.json" }

    private func noted() throws(PluginFailure) -> [Stopped] {
        guard let bytes = readWholeFile(notePath) else { return [] }
        do {
            return try JSONDecoder().decode([Stopped].self, from: Data(bytes))
        } catch {
            throw PluginFailure(
                .badState, "\(notePath) is damaged: \(error)", hint: "Start the guests by hand and remove the file")
        }
    }

    func prepare() throws(PluginFailure) -> RestoreResult {
        var stopped = try noted()
        var steps: [String] = []
        for resource in parameters.resources {
            let uri = try GuestTarget.uri(resource)
            let hypervisor = try Hypervisor.open(uri, configuration)
            guard let guest = hypervisor.find(uuid: resource.id) else { continue }
            let name = guest.name
            do throws(LibvirtError) {
                guard try guest.state().state != .off else { continue }
                // Noted first: what is stopped and not noted would stay off.
                if !stopped.contains(where: { $0.uuid == resource.id }) {
                    stopped.append(Stopped(uuid: resource.id, name: name, uri: uri))
                }
                let seconds = configuration.shutdownSeconds ?? Restorer.shutdownSeconds
                try Self.write(stopped, notePath)
                let isClean = try guest.stop(withinSeconds: seconds)
                steps.append(isClean ? "\(name) was shut down" : "\(name) was turned off: it did not shut down")
            } catch {
                throw PluginFailure(.restoreFailed, "\(name) cannot be stopped: \(error.message)")
            }
        }
        return RestoreResult(steps: steps)
    }

    func finish() throws(PluginFailure) -> RestoreResult {
        var steps: [String] = []
        for entry in try noted() {
            let hypervisor = try Hypervisor.open(entry.uri, configuration)
            guard let guest = hypervisor.find(uuid: entry.uuid) else {
                steps.append("\(entry.name) does not exist any more, and was not started")
                continue
            }
            do throws(LibvirtError) {
                if try guest.state().state == .off { try guest.start() }
            } catch {
                throw PluginFailure(
                    .restoreFailed, "\(entry.name) does not start: \(error.message)",
                    hint: "Put it right and finish the restore again, or start it: virsh start \(entry.name)")
            }
            steps.append("\(entry.name) is started")
        }
        unlink(notePath)
        return RestoreResult(steps: steps)
    }

    private static func write(_ stopped: [Stopped], _ path: String) throws(LibvirtError) {
        do {
            try writeFile(path, [UInt8](try JSONEncoder().encode(stopped)))
        } catch {
            throw LibvirtError(code: 0, domain: 0, message: "it cannot be noted: \(error)")
        }
    }
}
