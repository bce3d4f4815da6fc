import Foundation
import PluginKit

/// What an image file stands on, asked of the program that knows all formats.
enum BackingChain {
    private struct Image: Decodable {
        var filename: String
        var format: String
        /// As it is written in the image.
        var backing: String?

        enum CodingKeys: String, CodingKey {
            case filename
            case format
            case backing = "backing-filename"
        }
    }

    private static let program = "/usr/bin/qemu-img"
    private static let limitSeconds = 5.0
    /// Of what `qemu-img info` says about a chain; it has about 1 KiB for each image.
    private static let outputBytes = 256 << 10

    /// The images below the given one, nearest first.
    static func read(_ path: String) -> Result<[DiskSource], PluginFailure> {
        do throws(PluginFailure) {
            return .success(try images(path).dropFirst().map { source($0.filename) })
        } catch {
            return .failure(error)
        }
    }

    /// What a qcow2 image says it stands on, as it is written in it, whether that is there or not.
    static func nearest(_ path: String) throws(PluginFailure) -> String? {
        try image(path, ["-f", "qcow2"]).backing
    }

    static func format(_ path: String) throws(PluginFailure) -> String { try image(path, []).format }

    private static func image(_ path: String, _ options: [String]) throws(PluginFailure) -> Image {
        let outcome = try Command(
            [program, "info", "-U", "--output=json"] + options + ["--", path], timeoutSeconds: limitSeconds
        ).run()
        guard outcome.isSuccess, let image = try? JSONDecoder().decode(Image.self, from: Data(outcome.output.utf8))
        else {
            throw PluginFailure(.operatingSystem, "\(path) cannot be looked at: qemu-img \(outcome.explanation)")
        }
        return image
    }

    private static func images(_ path: String) throws(PluginFailure) -> [Image] {
        guard access(program, X_OK) == 0 else {
            throw PluginFailure(
                .operatingSystem, "what \(path) stands on is not known: there is no \(program)",
                hint: "Install qemu-utils")
        }
        // -U: the image of a running guest is locked by it.
        var command = Command(
            [program, "info", "-U", "--backing-chain", "--output=json", "--", path], timeoutSeconds: limitSeconds)
        command.diesWithUs = true
        command.keptOutputBytes = outputBytes
        let outcome = try command.run()
        guard outcome.isSuccess, let images = try? JSONDecoder().decode([Image].self, from: Data(outcome.output.utf8))
        else {
            throw PluginFailure(
                .operatingSystem, "what \(path) stands on is not known: qemu-img \(outcome.explanation)")
        }
        return images
    }

    private static func source(_ name: String) -> DiskSource {
        if name.hasPrefix("/") {
            return BlockTopology.number(ofPath: name) == nil ? .file(path: name) : .block(path: name)
        }
        return .other(name)
    }
}
